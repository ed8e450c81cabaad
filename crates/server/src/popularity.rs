//! Counts of what is read of appliances: reports of hosts are added up in the database, and nothing else of them is kept.
//!
//! A host counts once a day for each version and part. Counts are bounded by the regions of the disk, and go with their
//! version. What is said of versions comes from their publisher's manifest, never from a report.

use std::collections::BTreeMap;

use collective_api::server::{
    PopularRun, Popularity, REPORT_RUNS_MAX, ReadPart, ReadReport, VersionReads,
};
use collective_model::{
    BLOCK_BYTES, DiskRole, Error, ErrorKind, HostId, Regions, RepositoryId, Result, Version,
};
use collective_repository::retention::Reason;
use collective_repository::{Descriptor, Kind};

use crate::database::{Row, Value, text};
use crate::state::State;
use crate::upkeep;
use crate::upkeep::record::json;

/// The milliseconds of a day.
const DAY_MS: i64 = 24 * 3600 * 1000;

/// What is kept of a run of regions, shorter than an object of JSON.
type Counts = Vec<[u64; 4]>;

/// Adds a report, unless its host counted today already.
pub async fn add(
    state: &State,
    descriptor: &Descriptor,
    head: Option<Version>,
    host: HostId,
    report: &ReadReport,
) -> Result<()> {
    let regions = regions(state, descriptor, head, report.version).await?;
    check(report, regions)?;
    let (id, version) = (text(&descriptor.id), number(report.version)?);
    let day = Value::from(state.now().0.div_euclid(DAY_MS));
    let mut transaction = state.database.begin().await?;
    transaction.run("delete from reporters where day <> $1", std::slice::from_ref(&day)).await?;
    let sql = "insert into reporters (repository, version, part, host, day) \
        values ($1, $2, $3, $4, $5) on conflict do nothing returning day";
    let part = text(&part_name(report.part));
    let values = [id.clone(), version.clone(), part, text(&host), day];
    if transaction.run(sql, &values).await?.is_empty() {
        // The day's first is what counts; who says more is told nothing else.
        return transaction.commit().await;
    }
    let sql = "insert into popularity \
        (repository, version, region_blocks, starts, uses, read_bytes, foretold_bytes, counts) \
        values ($1, $2, $3, 0, 0, 0, 0, '[]') on conflict do nothing";
    let region_blocks = i64::try_from(regions.region_blocks()).unwrap_or(i64::MAX);
    transaction.run(sql, &[id.clone(), version.clone(), Value::from(region_blocks)]).await?;
    let (starts, uses) = match report.part {
        ReadPart::Start => (1, 0),
        ReadPart::Use => (0, 1),
    };
    let sql = "update popularity set starts = starts + $3, uses = uses + $4, \
        read_bytes = read_bytes + $5, foretold_bytes = foretold_bytes + $6 \
        where repository = $1 and version = $2 returning counts";
    let of_start = |bytes: u64| Value::from(starts * i64::try_from(bytes).unwrap_or(0));
    let values = [
        id.clone(),
        version.clone(),
        Value::from(starts),
        Value::from(uses),
        of_start(report.read_bytes),
        of_start(report.foretold_bytes),
    ];
    let rows = transaction.run(sql, &values).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "a row is gone"))?;
    let counts = add_up(&row.json::<Counts>(0)?, report, regions);
    let sql = "update popularity set counts = $3 where repository = $1 and version = $2";
    transaction.run(sql, &[id, version, text(&json(&counts))]).await?;
    transaction.commit().await
}

/// Returns what was reported of a version, or of the last one before it of which something was.
pub async fn find(state: &State, id: RepositoryId, version: Version) -> Result<Option<Popularity>> {
    let sql = "select version, starts, uses, read_bytes, foretold_bytes, region_blocks, counts \
        from popularity where repository = $1 and version <= $2 order by version desc limit 1";
    let rows = state.database.read(sql, &[text(&id), number(version)?]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let runs = row.json::<Counts>(6)?.into_iter();
    Ok(Some(Popularity {
        reads: reads(row)?,
        region_blocks: row.integer(5)?.unsigned_abs(),
        runs: runs
            .map(|[first, count, starts, uses]| PopularRun { first, count, starts, uses })
            .collect(),
    }))
}

/// Returns how well traces foretell, by version.
pub async fn overview(state: &State, id: RepositoryId) -> Result<Vec<VersionReads>> {
    let sql = "select version, starts, uses, read_bytes, foretold_bytes from popularity \
        where repository = $1 order by version";
    let rows = state.database.read(sql, &[text(&id)]).await?;
    rows.iter().map(reads).collect()
}

/// Reads a row that begins with the version and its four figures.
fn reads(row: &Row) -> Result<VersionReads> {
    Ok(VersionReads {
        version: version_of(row, 0)?,
        starts: row.integer(1)?.unsigned_abs(),
        uses: row.integer(2)?.unsigned_abs(),
        read_bytes: row.integer(3)?.unsigned_abs(),
        foretold_bytes: row.integer(4)?.unsigned_abs(),
    })
}

/// Forgets the versions up to the last of `kept` that are not among them.
pub async fn keep_only(
    state: &State,
    id: RepositoryId,
    kept: &BTreeMap<Version, Reason>,
) -> Result<()> {
    let Some(last) = kept.keys().next_back() else { return Ok(()) };
    let sql = "select version from popularity where repository = $1 and version < $2";
    for row in state.database.read(sql, &[text(&id), number(*last)?]).await? {
        let version = version_of(&row, 0)?;
        if !kept.contains_key(&version) {
            let values = [text(&id), number(version)?];
            let sql = "delete from popularity where repository = $1 and version = $2";
            state.database.write(sql, &values).await?;
        }
    }
    Ok(())
}

/// Looks up how the system disk of a version is cut.
async fn regions(
    state: &State,
    descriptor: &Descriptor,
    head: Option<Version>,
    version: Version,
) -> Result<Regions> {
    if descriptor.kind != Kind::Appliance {
        let message = "what is read of a user disk is nobody else's business";
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    if head.is_none_or(|head| version > head) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no version {version}")));
    }
    let version = upkeep::open(state, descriptor).await?.version(version).await?;
    Ok(Regions::of_disk(version.manifest().disk(DiskRole::System)?.size_bytes))
}

fn check(report: &ReadReport, regions: Regions) -> Result<()> {
    let disk_bytes = regions.count() * regions.region_blocks() * BLOCK_BYTES;
    let mut end = 0;
    let mut in_order = report.regions.iter().map(|run| {
        let begins = run.count > 0 && run.first >= end;
        end = run.first.saturating_add(run.count);
        begins && end <= regions.count()
    });
    if report.regions.len() <= REPORT_RUNS_MAX
        && in_order.all(|fits| fits)
        && report.read_bytes <= disk_bytes
        && report.foretold_bytes <= report.read_bytes
    {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "the report does not fit the disk that it is about"))
}

/// Adds the regions of a report to what was counted. Pure.
fn add_up(counts: &Counts, report: &ReadReport, regions: Regions) -> Counts {
    // At most as many as there may be: what an earlier release counted fits as well.
    let mut table = vec![(0_u64, 0_u64); usize::try_from(regions.count()).unwrap_or(0)];
    let part = |first: u64, count: u64| first as usize..first.saturating_add(count) as usize;
    for [first, count, starts, uses] in counts {
        let known = table.get_mut(part(*first, *count)).unwrap_or_default();
        known.iter_mut().for_each(|region| *region = (*starts, *uses));
    }
    for run in &report.regions {
        for (starts, uses) in table.get_mut(part(run.first, run.count)).unwrap_or_default() {
            match report.part {
                ReadPart::Start => *starts += 1,
                ReadPart::Use => *uses += 1,
            }
        }
    }
    let mut first = 0;
    let mut added = Counts::new();
    for equal in table.chunk_by(|one, next| one == next) {
        let (starts, uses) = equal[0];
        if (starts, uses) != (0, 0) {
            added.push([first, equal.len() as u64, starts, uses]);
        }
        first += equal.len() as u64;
    }
    added
}

fn part_name(part: ReadPart) -> &'static str {
    match part {
        ReadPart::Start => "start",
        ReadPart::Use => "use",
    }
}

fn number(version: Version) -> Result<Value> {
    let number = i64::try_from(version.number());
    number
        .map(Value::from)
        .map_err(|_| Error::new(ErrorKind::NotFound, format!("there is no version {version}")))
}

fn version_of(row: &Row, column: usize) -> Result<Version> {
    let number = row.integer(column)?.unsigned_abs();
    Version::new(number).ok_or_else(|| Error::new(ErrorKind::Corrupt, "a version has no number"))
}

#[cfg(test)]
mod tests {
    use collective_api::server::{ReadPart, ReadReport, RegionRun};
    use collective_model::{Regions, Version};

    use super::{add_up, check};

    fn report(part: ReadPart, runs: &[(u64, u64)]) -> ReadReport {
        let runs = runs.iter().map(|(first, count)| RegionRun { first: *first, count: *count });
        let regions = runs.collect();
        ReadReport { version: Version::FIRST, part, regions, read_bytes: 0, foretold_bytes: 0 }
    }

    fn ten() -> Regions {
        Regions::of_disk(10 * 64 * 4096)
    }

    #[test]
    fn counts_of_starts_and_uses_add_up_by_region() {
        let mut counts = Vec::new();
        for (part, runs) in [
            (ReadPart::Start, &[(0, 2), (5, 1)][..]),
            (ReadPart::Use, &[(1, 3)]),
            (ReadPart::Start, &[(0, 1), (9, 1)]),
        ] {
            counts = add_up(&counts, &report(part, runs), ten());
        }
        let expected = [[0, 1, 2, 0], [1, 1, 1, 1], [2, 2, 0, 1], [5, 1, 1, 0], [9, 1, 1, 0]];
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_report_that_does_not_fit_its_disk_is_refused() {
        let fits = |runs: &[(u64, u64)]| check(&report(ReadPart::Use, runs), ten()).is_ok();
        assert!(fits(&[]) && fits(&[(0, 10)]) && fits(&[(0, 1), (1, 1), (9, 1)]));
        for runs in [
            &[(0, 11)][..],
            &[(10, 1)],
            &[(3, 0)],
            &[(3, 2), (4, 1)],
            &[(3, 1), (1, 1)],
            &[(u64::MAX, u64::MAX)],
            &[(1, u64::MAX)],
        ] {
            assert!(!fits(runs), "{runs:?}");
        }
        let (read, all) =
            (ReadReport { read_bytes: 5, ..report(ReadPart::Start, &[]) }, 10 * 64 * 4096);
        assert!(check(&ReadReport { foretold_bytes: 5, ..read.clone() }, ten()).is_ok());
        assert!(check(&ReadReport { foretold_bytes: 6, ..read.clone() }, ten()).is_err());
        assert!(check(&ReadReport { read_bytes: all + 1, ..read }, ten()).is_err());
    }
}
