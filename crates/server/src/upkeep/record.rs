//! What the database knows of rules and checks.

use collective_api::server::{CheckStatus, DamagedObject, DamagedRepository, Upkeep};
use collective_model::{RepositoryId, Result, Timestamp};
use collective_repository::retention::USER_DISKS;
use collective_repository::{Retention, VerifyReport, VerifyState};
use serde::Serialize;

use crate::database::{Row, Transaction, Value, text};
use crate::state::State;

/// Damages of a repository that are remembered by name.
const DAMAGES_REMEMBERED: usize = 10;
/// Damaged repositories that are shown at once.
const DAMAGED_SHOWN: i64 = 100;
/// The name of the setting that has the rule for user disks: JSON, `null` for none.
const USER_DISK_RETENTION: &str = "user_disk_retention";

/// The columns of a check, in the order in which [`check`] reads them.
macro_rules! check_columns {
    () => {
        "checked, objects, bytes, damaged, damages, checking_bytes"
    };
}

/// Returns which versions of user disks stay; none: all.
pub async fn user_disk_retention(state: &State) -> Result<Option<Retention>> {
    let sql = "select value from settings where name = $1";
    let rows = state.database.read(sql, &[text(&USER_DISK_RETENTION)]).await?;
    rows.first().map_or(Ok(Some(USER_DISKS)), |row| row.json(0))
}

/// Sets which versions of user disks stay.
pub async fn set_user_disk_retention(
    transaction: &mut Transaction,
    rule: Option<Retention>,
) -> Result<()> {
    let sql = "insert into settings (name, value) values ($1, $2) \
        on conflict (name) do update set value = excluded.value";
    let values = [text(&USER_DISK_RETENTION), text(&json(&rule))];
    transaction.run(sql, &values).await.map(drop)
}

/// Returns what is known of a repository's checks.
pub async fn check_of(state: &State, id: RepositoryId) -> Result<CheckStatus> {
    let sql = concat!("select ", check_columns!(), " from upkeep where repository = $1");
    let rows = state.database.read(sql, &[text(&id)]).await?;
    rows.first().map_or_else(|| Ok(CheckStatus::default()), check)
}

/// Remembers how far a check is.
pub async fn under_way(state: &State, id: RepositoryId, so_far: &VerifyState) -> Result<()> {
    let sql = "insert into upkeep \
        (repository, checking, checking_bytes, objects, bytes, damaged, damages) \
        values ($1, $2, $3, 0, 0, 0, '[]') on conflict (repository) do update set \
        checking = excluded.checking, checking_bytes = excluded.checking_bytes";
    let values = [text(&id), text(&json(so_far)), integer(so_far.report.bytes)];
    state.database.write(sql, &values).await.map(drop)
}

/// Returns how far a check that was broken off came.
pub async fn so_far(state: &State, id: RepositoryId) -> Result<VerifyState> {
    let sql = "select checking from upkeep where repository = $1";
    let rows = state.database.read(sql, &[text(&id)]).await?;
    let Some(row) = rows.first() else { return Ok(VerifyState::default()) };
    // One of another release cannot be gone on with; then it begins anew.
    Ok(row.json_optional(0).ok().flatten().unwrap_or_default())
}

/// Remembers what a complete check found.
pub async fn finished(state: &State, id: RepositoryId, report: &VerifyReport) -> Result<()> {
    let sql = "insert into upkeep (repository, checked, objects, bytes, damaged, damages) \
        values ($1, $2, $3, $4, $5, $6) on conflict (repository) do update set \
        checking = null, checking_bytes = null, checked = excluded.checked, \
        objects = excluded.objects, bytes = excluded.bytes, damaged = excluded.damaged, \
        damages = excluded.damages";
    let damaged = report.damages.len() as u64 + report.further_damages;
    let first = report.damages.iter().take(DAMAGES_REMEMBERED);
    let damages: Vec<DamagedObject> = first
        .map(|it| DamagedObject { object: it.object.clone(), what: it.what.clone() })
        .collect();
    let values = [
        text(&id),
        Value::from(state.now().0),
        integer(report.objects),
        integer(report.bytes),
        integer(damaged),
        text(&json(&damages)),
    ];
    state.database.write(sql, &values).await.map(drop)
}

/// Remembers that a repository was pruned by the server.
pub async fn pruned(state: &State, id: RepositoryId) -> Result<()> {
    let sql = "insert into upkeep (repository, objects, bytes, damaged, damages, pruned) \
        values ($1, 0, 0, 0, '[]', $2) on conflict (repository) do update set \
        pruned = excluded.pruned";
    state.database.write(sql, &[text(&id), Value::from(state.now().0)]).await.map(drop)
}

/// Returns how all repositories stand.
pub async fn overview(state: &State) -> Result<Upkeep> {
    let sql = "select count(*), count(checked), min(checked) from repositories \
        left join upkeep on upkeep.repository = repositories.id where head > 0";
    let rows = state.database.read(sql, &[]).await?;
    let count = |column| rows.first().map_or(Ok(0), |row| row.integer(column));
    let (repositories, checked) = (count(0)?.unsigned_abs(), count(1)?.unsigned_abs());
    let oldest = rows.first().map_or(Ok(None), |row| row.optional_integer(2))?;
    let sql = concat!(
        "select ",
        check_columns!(),
        ", coalesce(appliances.name, subscriptions.appliance), user_name from upkeep \
         left join appliances on appliances.repository = upkeep.repository \
         left join subscriptions on subscriptions.repository = upkeep.repository \
         where damaged > 0 and coalesce(appliances.name, subscriptions.appliance) is not null \
         order by checked desc limit $1"
    );
    let damaged = state.database.read(sql, &[Value::from(DAMAGED_SHOWN)]).await?;
    Ok(Upkeep {
        user_disks: user_disk_retention(state).await?,
        repositories,
        unchecked: repositories - checked.min(repositories),
        oldest_check: oldest.map(Timestamp),
        damaged: damaged.iter().map(damaged_repository).collect::<Result<_>>()?,
    })
}

/// Writes a value as it is kept.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs always become JSON")
}

fn damaged_repository(row: &Row) -> Result<DamagedRepository> {
    let (appliance, user) = (row.parse(6)?, row.parse_optional(7)?);
    Ok(DamagedRepository { appliance, user, check: check(row)? })
}

fn check(row: &Row) -> Result<CheckStatus> {
    Ok(CheckStatus {
        finished: row.optional_integer(0)?.map(Timestamp),
        objects: row.integer(1)?.unsigned_abs(),
        bytes: row.integer(2)?.unsigned_abs(),
        damaged: row.integer(3)?.unsigned_abs(),
        damages: row.json(4)?,
        under_way_bytes: row.optional_integer(5)?.map(i64::unsigned_abs),
    })
}

fn integer(value: u64) -> Value {
    Value::from(i64::try_from(value).unwrap_or(i64::MAX))
}
