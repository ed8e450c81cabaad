//! kill -9 of the host's daemon, the server or QEMU at random steps, at least fifty times.
//!
//! A model stands beside the world: the files that the guest has synced. Whatever was killed when, the next start must
//! show every one of them: on the layer of this computer or in the repository, nothing is lost or half there. The seed
//! is printed; `COLLECTIVE_SEED` takes one.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use collective_testing::Random;

use super::world::{LIMIT, World, signal};

/// Kills in one run, at least.
const KILLS: u32 = 50;

#[test]
fn nothing_synced_is_lost_whatever_is_killed_at_whichever_step() {
    let mut run = Run::new(seed());
    while run.kills < KILLS {
        run.round();
    }
    run.check();
    assert!(run.world.stop("a") > 1);
    // What the repository has is the same: a computer that never ran anything sees it all.
    run.world.computer("b");
    run.world.start("b");
    for (name, text) in &run.synced {
        assert_eq!(&run.world.read("b", name), text, "{name} on the other computer");
    }
}

struct Run {
    world: World,
    random: Random,
    kills: u32,
    written: u32,
    synced: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Host,
    Server,
    Guest,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut world = World::new();
        // The server must come back where the host looks for it.
        let address = world.server.url.strip_prefix("https://").unwrap().to_owned();
        world.stage.stop_daemon("server").unwrap();
        world.server = world.stage.start_server_on(&address).unwrap();
        world.computer("a");
        Self { world, random: Random::new(seed), kills: 0, written: 0, synced: Vec::new() }
    }

    /// Brings the guest up, looks at everything, then kills something in the middle of something.
    fn round(&mut self) {
        self.check();
        self.write();
        let verb = ["publish", "stop", "start", "nothing"][self.random.below_u64(4) as usize];
        println!("round {}: {verb}", self.kills);
        let mut busy = self.begin(verb);
        for _ in 0..=self.random.below_u64(2) {
            std::thread::sleep(Duration::from_millis(self.random.below_u64(1500)));
            self.kill();
        }
        if let Some(child) = &mut busy {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.revive();
    }

    /// Starts the guest, however the last round left things, and reads every file.
    fn check(&mut self) {
        let limit = Instant::now() + LIMIT;
        loop {
            let outcome = self.world.stage.try_on("a", &["start", "tiny"]).unwrap();
            let running = outcome.code == 0 || self.world.status("a")["state"] == "running";
            if running
                && self.world.stage.try_on("a", &["exec", "tiny", "--", "/bin/true"]).unwrap().code
                    == 0
            {
                break;
            }
            assert!(Instant::now() < limit, "never runs: {:?} {}", outcome.lines, outcome.stderr);
            std::thread::sleep(Duration::from_millis(200));
        }
        let lines = self.world.guest("a", "cd /home && for f in f*; do echo $f $(cat $f); done");
        for (name, text) in &self.synced {
            let line = format!("{name} {text}");
            assert!(lines.lines().any(|found| found == line), "{name} is lost; there is {lines}");
        }
    }

    fn write(&mut self) {
        self.written += 1;
        let (name, text) = (format!("f{}", self.written), format!("text-{}", self.random.number()));
        self.world.write("a", &name, &text);
        self.synced.push((name, text));
    }

    fn begin(&self, verb: &str) -> Option<Child> {
        let words: &[&str] = match verb {
            "publish" => &["publish", "tiny"],
            "stop" => &["stop", "tiny"],
            "start" => &["restart", "tiny"],
            _ => return None,
        };
        let child = Command::new(self.world.stage.command())
            .arg("--host")
            .arg(self.world.stage.host_socket("a"))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Some(child.unwrap())
    }

    fn kill(&mut self) {
        let victim =
            [Victim::Host, Victim::Server, Victim::Guest][self.random.below_u64(3) as usize];
        println!("  kill {victim:?}");
        match victim {
            Victim::Host => self.world.stage.kill_daemon("a").unwrap(),
            Victim::Server => self.world.stage.kill_daemon("server").unwrap(),
            Victim::Guest => match self.world.guest_pid("a") {
                Some(pid) => signal(pid, "KILL"),
                None => return,
            },
        }
        self.kills += 1;
    }

    fn revive(&mut self) {
        let address = self.world.server.url.strip_prefix("https://").unwrap().to_owned();
        self.world.stage.stop_daemon("server").unwrap();
        self.world.stage.start_server_on(&address).unwrap();
        self.world.stage.stop_daemon("a").unwrap();
        self.world.stage.start_again("a").unwrap();
    }
}

/// Takes the seed from `COLLECTIVE_SEED`, or draws one; says which.
pub fn seed() -> u64 {
    let seed = std::env::var("COLLECTIVE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("COLLECTIVE_SEED={seed}");
    seed
}
