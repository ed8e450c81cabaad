//! `collective list`: the appliances that a person may start, and how each stands on this computer.

use clap::Args;
use collective_api::host::{ApplianceStatus, Held, InstanceState};
use collective_model::{ByteCount, Result, Version};

use crate::context::Context;
use crate::table::{draw, figures, words};

/// List the appliances that you may start
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective list")]
pub struct Arguments {}

pub async fn run(Arguments {}: Arguments, context: &Context) -> Result<()> {
    let client = context.host()?;
    let appliances = client.appliances().await?;
    for appliance in &appliances {
        context.output.object("appliance", appliance);
    }
    if !context.output.is_json() {
        context.output.text(&table(&appliances));
        for session in client.host().await?.sessions {
            let Some(problem) = session.problem else { continue };
            let hint = problem.hint.map_or_else(String::new, |hint| format!("\nhint: {hint}"));
            context.output.note(&format!("{}: {}{hint}", session.user, problem.message));
        }
    }
    Ok(())
}

/// Draws the table that `list` and `status` show.
pub fn table(appliances: &[ApplianceStatus]) -> String {
    let columns = [
        words("APPLIANCE"),
        figures("VERSION"),
        words("STATE"),
        figures("USER DISK"),
        words("BACKUP"),
        words("REMARK"),
    ];
    let rows = appliances.iter().map(row).collect();
    draw(
        &columns,
        rows,
        "no appliance yet: an administrator gives you one with `collective grant add`",
    )
}

fn row(appliance: &ApplianceStatus) -> Vec<String> {
    let disk = appliance.user_disk.as_ref();
    vec![
        appliance.name.to_string(),
        number(appliance.running.or(appliance.latest)),
        state(appliance.state).to_owned(),
        disk.map_or_else(|| "-".to_owned(), |disk| number(disk.version)),
        disk.map_or_else(String::new, |disk| backup(disk.backlog_bytes)),
        remark(appliance),
    ]
}

/// Says what is left to back up.
pub fn backup(backlog_bytes: u64) -> String {
    match backlog_bytes {
        0 => "safe".to_owned(),
        bytes => format!("{} left", ByteCount(bytes)),
    }
}

/// The word for a state.
pub fn state(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Stopped => "off",
        InstanceState::Queued => "queued",
        InstanceState::Starting => "starting",
        InstanceState::Running => "running",
        InstanceState::Paused => "paused",
        InstanceState::Stopping => "stopping",
    }
}

/// The one thing that most needs to be known.
fn remark(appliance: &ApplianceStatus) -> String {
    let disk = appliance.user_disk.as_ref();
    let kept = disk.filter(|disk| !disk.kept.is_empty()).map(|disk| {
        format!("{} file(s) kept aside: `collective status {}`", disk.kept.len(), appliance.name)
    });
    let problem = disk.and_then(|disk| disk.problem.as_ref());
    let elsewhere = appliance.lock.as_ref().filter(|lock| !lock.here);
    if let Some(reason) = &appliance.reason {
        reason.clone()
    } else if let Some(kept) = kept {
        kept
    } else if let Some(problem) = problem {
        format!("backup fails: {problem}")
    } else if let Some(lock) = elsewhere {
        format!("in use on {}", lock.host)
    } else if appliance.restart_needed {
        format!("version {} waits for the next start", number(appliance.latest))
    } else {
        appliance.held.map_or_else(String::new, held)
    }
}

/// Says whether what is to be held is here.
pub fn held(held: Held) -> String {
    match held.complete {
        Some(version) => format!("version {version} runs without the server"),
        None => "on its way here whole".to_owned(),
    }
}

fn number(version: Option<Version>) -> String {
    version.map_or_else(|| "-".to_owned(), |version| version.to_string())
}

#[cfg(test)]
mod tests {
    use collective_api::host::{ApplianceStatus, InstanceState, LockHolder, UserDiskStatus};
    use collective_model::{Timestamp, Version};

    use super::table;

    fn appliance(name: &str) -> ApplianceStatus {
        ApplianceStatus {
            name: name.parse().unwrap(),
            user: "ann".parse().unwrap(),
            latest: Version::new(2),
            state: InstanceState::Stopped,
            reason: None,
            running: None,
            restart_needed: false,
            boot_seconds: None,
            fetched: None,
            foretold: None,
            user_disk: None,
            lock: None,
            held: None,
            screen: None,
            operation: None,
        }
    }

    #[test]
    fn a_row_shows_the_state_the_backup_and_what_needs_to_be_known() {
        let disk = UserDiskStatus { version: Version::new(9), ..UserDiskStatus::default() };
        let behind = UserDiskStatus { backlog_bytes: 12_000_000, ..disk.clone() };
        let lock = LockHolder {
            host: "attic".to_owned(),
            here: false,
            since: Timestamp(0),
            seen: None,
            backlog_bytes: None,
        };
        let rows = [
            ApplianceStatus {
                state: InstanceState::Running,
                running: Version::new(1),
                restart_needed: true,
                user_disk: Some(behind),
                ..appliance("debian")
            },
            ApplianceStatus { user_disk: Some(disk), lock: Some(lock), ..appliance("office") },
            appliance("tiny"),
        ];
        insta::assert_snapshot!(table(&rows), @r"
        APPLIANCE  VERSION  STATE    USER DISK  BACKUP        REMARK
        debian           1  running          9  12.0 MB left  version 2 waits for the next start
        office           2  off              9  safe          in use on attic
        tiny             2  off              -
        ");
    }
}
