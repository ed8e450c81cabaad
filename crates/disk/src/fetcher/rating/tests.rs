//! The rating told what happens, and on simulated links that slow down, stall and come back.

use super::*;

const REPOSITORY: SourceId = SourceId::REPOSITORY;
const NEAR: SourceId = SourceId(1);
const FAR: SourceId = SourceId(2);
const PACK: Digest = Digest([1; 32]);
/// A frame as a boot's are: 256 KiB compressed to a third.
const FRAME: u64 = 90_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn choose(rating: &Rating, sources: &[SourceId], now: Instant) -> Option<SourceId> {
    rating.choose(&Wanted { sources, pack: PACK, bytes: FRAME }, now)
}

/// Lets a source answer, each frame in so many ms.
fn answer(rating: &mut Rating, id: SourceId, took_ms: u64, now: Instant) {
    rating.answered(id, FRAME, ms(took_ms), now);
}

fn failed() -> Fault {
    Fault::Failed("no answer".to_owned())
}

#[test]
fn the_fastest_is_asked_and_a_mirror_spares_the_repository() {
    let (mut rating, now) = (Rating::new(2), Instant::now());
    let all = [REPOSITORY, NEAR, FAR];
    for (times_ms, best) in [
        ([140, 300, 400], REPOSITORY),
        ([300, 200, 400], NEAR),
        ([300, 400, 350], FAR),
        // Not that much faster; and fast enough, however fast the repository is.
        ([300, 420, 500], NEAR),
        ([1, 150, 400], NEAR),
    ] {
        for (id, took_ms) in all.into_iter().zip(times_ms) {
            rating.sources[id.0].pace = None;
            answer(&mut rating, id, took_ms, now);
        }
        assert_eq!(choose(&rating, &all, now), Some(best), "{times_ms:?}");
    }
    assert_eq!(choose(&rating, &[REPOSITORY, FAR], now), Some(REPOSITORY));
    assert_eq!(choose(&rating, &[], now), None);
}

#[test]
fn what_is_unknown_is_tried_by_one_request_at_a_time_and_not_at_all_where_all_is_well() {
    let (mut rating, now) = (Rating::new(2), Instant::now());
    let all = [REPOSITORY, NEAR, FAR];
    for expected in [NEAR, FAR, REPOSITORY, REPOSITORY] {
        assert_eq!(choose(&rating, &all, now), Some(expected));
        rating.begun(expected);
    }
    assert_eq!(choose(&rating, &[NEAR, FAR], now), Some(NEAR), "there is nobody else");
    answer(&mut rating, REPOSITORY, 900, now);
    assert_eq!(choose(&rating, &all, now), Some(REPOSITORY));
    rating.ended(FAR);
    assert_eq!(choose(&rating, &all, now), Some(FAR));
    answer(&mut rating, NEAR, 10, now);
    assert_eq!(choose(&rating, &all, now), Some(NEAR), "no need to look further");
    // However fast the repository is, a mirror that is back is used again.
    rating.fault(NEAR, &failed(), now);
    rating.fault(FAR, &failed(), now);
    rating.ended(NEAR);
    answer(&mut rating, REPOSITORY, 1, now);
    assert_eq!(choose(&rating, &all, now), Some(REPOSITORY));
    assert_eq!(choose(&rating, &all, now + FIRST_PAUSE), Some(NEAR));
    rating.forgive(now);
    answer(&mut rating, NEAR, 10, now);
    // What was learned is forgotten, of each at its time.
    answer(&mut rating, FAR, 10, now + FORGET / 2);
    assert_eq!(choose(&rating, &all, now + FORGET), Some(FAR));
}

#[test]
fn who_fails_is_dropped_for_twice_as_long_each_time_until_it_is_proven() {
    let (mut rating, mut now) = (Rating::new(1), Instant::now());
    let (since, both) = (now, [REPOSITORY, NEAR]);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert_eq!(choose(&rating, &both, now), Some(NEAR), "it is tried again");
        rating.fault(NEAR, &failed(), now);
        // Several were on the way.
        rating.fault(NEAR, &Fault::Late, now + ms(1));
        let dropped = rating.sources()[NEAR.0].dropped.clone().unwrap();
        assert_eq!((dropped.since, dropped.reason.as_str()), (since, "no answer"));
        assert_eq!(choose(&rating, &both, now + ms(2)), Some(REPOSITORY));
        assert_eq!(choose(&rating, &[NEAR], now + ms(2)), None);
        pauses.push((dropped.until - now).as_secs());
        now = dropped.until;
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
    for _ in 0..PROVEN {
        answer(&mut rating, NEAR, 10, now);
    }
    assert_eq!(rating.sources()[NEAR.0].dropped, None);
    rating.fault(NEAR, &Fault::Late, now);
    let dropped = rating.sources()[NEAR.0].dropped.clone().unwrap();
    assert_eq!((dropped.since, dropped.until), (now, now + FIRST_PAUSE));
}

#[test]
fn who_lies_is_dropped_for_a_day_whatever_is_said_of_the_line() {
    let (mut rating, now) = (Rating::new(2), Instant::now());
    rating.fault(FAR, &failed(), now);
    rating.fault(NEAR, &failed(), now);
    rating.fault(NEAR, &Fault::Lied("pack 7".to_owned()), now);
    // What was asked before the lie may still come.
    answer(&mut rating, NEAR, 1, now);
    rating.forgive(now);
    let dropped = rating.sources()[NEAR.0].dropped.clone().unwrap();
    assert_eq!(dropped.reason, "it gave wrong bytes: pack 7");
    assert_eq!(rating.sources()[FAR.0].dropped, None);
    assert_eq!(choose(&rating, &[NEAR], now + Duration::from_secs(23 * 3600)), None);
    assert_eq!(choose(&rating, &[NEAR], now + LIE_PAUSE), Some(NEAR));
}

#[test]
fn a_repository_that_fails_is_the_last_resort() {
    let (mut rating, now) = (Rating::new(1), Instant::now());
    answer(&mut rating, NEAR, 5000, now);
    rating.fault(REPOSITORY, &failed(), now);
    assert_eq!(choose(&rating, &[REPOSITORY, NEAR], now), Some(NEAR));
    assert_eq!(choose(&rating, &[REPOSITORY], now), Some(REPOSITORY));
    // What was asked before does not count; what was asked as the last resort does.
    answer(&mut rating, REPOSITORY, 10, now + ms(9));
    assert!(rating.sources()[REPOSITORY.0].dropped.is_some());
    answer(&mut rating, REPOSITORY, 10, now + ms(11));
    assert_eq!(rating.sources()[REPOSITORY.0].dropped, None);
    assert_eq!(choose(&rating, &[REPOSITORY, NEAR], now + ms(11)), Some(REPOSITORY));
}

#[test]
fn a_pack_is_not_asked_for_where_it_was_lacking_until_copies_may_be_newer() {
    let (mut rating, now) = (Rating::new(1), Instant::now());
    answer(&mut rating, NEAR, 10, now);
    rating.lacks(NEAR, PACK, now);
    let wanted = |pack| Wanted { sources: &[REPOSITORY, NEAR], pack, bytes: FRAME };
    assert_eq!(rating.choose(&wanted(PACK), now), Some(REPOSITORY));
    assert_eq!(rating.choose(&wanted(Digest([2; 32])), now), Some(NEAR));
    assert_eq!(rating.choose(&wanted(PACK), now + LACK_PAUSE), Some(NEAR));
    for number in 0..2 * LACKING_PACKS as u64 {
        let mut pack = [0; 32];
        pack[..8].copy_from_slice(&number.to_le_bytes());
        rating.lacks(NEAR, Digest(pack), now);
    }
    assert_eq!(rating.sources()[NEAR.0].lacking.len(), LACKING_PACKS);
}

#[test]
fn races_keep_to_a_share_of_what_was_fetched() {
    let mut rating = Rating::new(1);
    let raced = |rating: &mut Rating| (0..1000).filter(|_| rating.race(FRAME)).count() as u64;
    assert_eq!(raced(&mut rating), RACED_BYTES / FRAME);
    rating.landed(NEAR, 1 << 30);
    let more = raced(&mut rating);
    assert!(more * FRAME <= (1 << 30) / RACED_SHARE + FRAME, "{more}");
    assert!(rating.raced_bytes() <= RACED_BYTES + (1 << 30) / RACED_SHARE);
}

/// Links to the repository and one mirror: a round trip in ms, and bytes a second.
struct Links {
    rating: Rating,
    links: [(u64, f64); 2],
    now: Instant,
    came: [u64; 2],
}

impl Links {
    fn takes(&self, id: SourceId) -> Duration {
        let (round_trip_ms, rate) = self.links[id.0];
        ms(round_trip_ms) + Duration::try_from_secs_f64(FRAME as f64 / rate).unwrap_or(ms(30_000))
    }

    /// Fetches a frame as a fetch does: from the chosen, and after its time from the other as well. Returns how long it took.
    fn fetch(&mut self) -> Duration {
        let first = choose(&self.rating, &[REPOSITORY, NEAR], self.now).unwrap();
        let other = if first == NEAR { REPOSITORY } else { NEAR };
        let patience = self.rating.patience(first, FRAME, self.now);
        let (alone, second) = (self.takes(first), patience + self.takes(other));
        let is_raced = alone > patience
            && choose(&self.rating, &[other], self.now + patience).is_some()
            && self.rating.race(FRAME);
        let (winner, took) =
            if is_raced && second < alone { (other, second) } else { (first, alone) };
        self.now += took;
        if winner != first {
            self.rating.fault(first, &Fault::Late, self.now);
        }
        self.rating.landed(winner, FRAME);
        let own = if winner == first { took } else { took - patience };
        self.rating.answered(winner, FRAME, own, self.now);
        self.came[winner.0] += 1;
        took
    }

    fn fetch_many(&mut self, count: usize) -> Duration {
        (0..count).map(|_| self.fetch()).max().unwrap()
    }
}

#[test]
fn on_links_that_change_the_better_one_brings_nearly_all_and_no_frame_waits_long() {
    let (dsl, lan, stalled) = ((40, 187_500.0), (1, 12_500_000.0), (1, 0.001));
    let links = [dsl, lan];
    let (rating, now, came) = (Rating::new(1), Instant::now(), [0; 2]);
    let mut links = Links { rating, links, now, came };
    let longest = links.fetch_many(200);
    assert!(longest < ms(50), "{longest:?}");
    assert_eq!(links.came, [0, 200], "nothing of the slow line is needed");

    // The mirror stalls: one frame waits for its patience and the slow line, and then it is left alone.
    links.links[NEAR.0] = stalled;
    let longest = links.fetch_many(100);
    assert!(longest < FIRST_PATIENCE + ms(600), "{longest:?}");
    assert_eq!(links.came[REPOSITORY.0], 100);
    let wasted = links.rating.raced_bytes() / FRAME;
    assert!((1..=6).contains(&wasted), "{wasted} frames were asked for twice in a minute");

    // It is back.
    links.links[NEAR.0] = lan;
    links.now += LONGEST_PAUSE;
    assert!(links.fetch_many(100) < ms(600));
    assert_eq!(links.came[NEAR.0], 300);

    // Both are slow together: nobody pays twice for long.
    links.links = [(400, 50_000.0), (400, 40_000.0)];
    let raced = links.rating.raced_bytes();
    links.fetch_many(400);
    let raced = links.rating.raced_bytes() - raced;
    assert!(raced <= RACED_BYTES + 800 * FRAME / RACED_SHARE, "{raced}");
}
