//! `collective status`: this computer, who is here, what runs and what goes on; and waiting until it is safe to leave.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use collective_api::HostClient;
use collective_api::host::{
    ApplianceStatus, Fetched, HostStatus, InstanceState, Operation, OperationState, SourceStatus,
};
use collective_model::{ApplianceName, ByteCount, ErrorKind, OperationId, Result, Timestamp};

use crate::context::{Context, now};
use crate::progress::{Meter, Step};
use crate::table::{draw, figures, words};
use crate::text;
use crate::verbs::list;
use crate::wait;

/// How often the host is asked while we wait: backlogs shrink over minutes, and a person looks at it.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Show how this computer and its appliances stand
///
/// With --wait it comes back when nothing goes on any more and everything is backed up: when it is safe to leave. What
/// runs is backed up at once for that, with what its guest has written until then.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective status\n  collective status debian --wait")]
pub struct Arguments {
    /// Only this appliance, in more detail
    appliance: Option<ApplianceName>,
    /// Wait until no work goes on and everything is backed up
    #[arg(long)]
    wait: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    if arguments.wait {
        let meter = context.output.meter("backing up");
        let rest = until_safe(&client, arguments.appliance.as_ref(), &meter);
        if wait::or_interrupt(rest).await?.is_none() {
            meter.note("The host goes on with it.");
            return Ok(wait::INTERRUPTED);
        }
    }
    match &arguments.appliance {
        Some(name) => {
            let appliance = client.appliance(name).await?;
            context.output.say("appliance", &appliance, || detail(&appliance));
        }
        None => overview(context, &client).await?,
    }
    Ok(0)
}

async fn overview(context: &Context, client: &HostClient) -> Result<()> {
    // First what asks the server, so that the host knows how it stands.
    let appliances = client.appliances().await;
    let host = client.host().await?;
    let operations = client.operations().await?;
    let appliances = match appliances {
        // What runs is shown even so, where it is clear whose it is.
        Err(error) if host.sessions.is_empty() && error.kind() == ErrorKind::Denied => Vec::new(),
        appliances => appliances?,
    };
    for appliance in &appliances {
        context.output.object("appliance", appliance);
    }
    for operation in &operations {
        context.output.object("operation", operation);
    }
    context.output.say("host", &host, || about_host(&host));
    if !context.output.is_json() {
        if !appliances.is_empty() {
            context.output.text(&format!("\n{}", list::table(&appliances)));
        }
        let running: Vec<&Operation> =
            operations.iter().filter(|operation| !operation.state.is_over()).collect();
        if !running.is_empty() {
            context.output.text(&format!("\n{}", work(&running)));
        }
    }
    Ok(())
}

/// Waits until the appliance, or every one, has no work and no backlog. What runs is asked for a backup once, which it
/// would make by itself only at its next time; what its guest writes after that is not waited for.
async fn until_safe(
    client: &HostClient,
    only: Option<&ApplianceName>,
    meter: &Meter,
) -> Result<()> {
    let mut asked = BTreeMap::new();
    let mut most = 0;
    loop {
        let mut appliances = match only {
            Some(name) => vec![client.appliance(name).await?],
            None => client.appliances().await?,
        };
        for appliance in appliances.iter().filter(|appliance| needs_asking(appliance)) {
            if !asked.contains_key(&appliance.name) {
                // One that is refused is tried again by the host; its status says why.
                let operation = client.publish(&appliance.name).await.ok();
                asked.insert(appliance.name.clone(), operation.map(|operation| operation.id));
            }
        }
        let states = states(client, &asked).await?;
        appliances.retain(|it| states.get(&it.name) != Some(&OperationState::Done));
        let left: u64 = appliances.iter().map(backlog).sum();
        let busy = appliances.iter().any(|it| {
            it.operation.is_some() || states.get(&it.name) == Some(&OperationState::Running)
        });
        if left == 0 && !busy {
            return Ok(());
        }
        most = most.max(left);
        let problem = appliances.iter().find_map(|appliance| {
            let problem = appliance.user_disk.as_ref()?.problem.as_ref()?;
            Some(format!("{}: {problem}", appliance.name))
        });
        meter.step(&Step {
            stage: problem.unwrap_or_else(|| format!("{} left", ByteCount(left))),
            done_bytes: most - left,
            total_bytes: Some(most),
            ..Step::default()
        });
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Tells whether a backup has to be asked for: of what is off, it goes on by itself. The backlog of what runs is no
/// measure: it is looked at now and then only.
fn needs_asking(appliance: &ApplianceStatus) -> bool {
    let runs = matches!(appliance.state, InstanceState::Running | InstanceState::Paused);
    runs && appliance.user_disk.is_some() && appliance.operation.is_none()
}

/// Asks how the backups stand that were asked for.
async fn states(
    client: &HostClient,
    asked: &BTreeMap<ApplianceName, Option<OperationId>>,
) -> Result<BTreeMap<ApplianceName, OperationState>> {
    let mut states = BTreeMap::new();
    for (name, operation) in asked {
        if let Some(id) = *operation {
            states.insert(name.clone(), client.operation(id).await?.state);
        }
    }
    Ok(states)
}

fn backlog(appliance: &ApplianceStatus) -> u64 {
    appliance.user_disk.as_ref().map_or(0, |disk| disk.backlog_bytes)
}

fn about_host(host: &HostStatus) -> String {
    let name = host.name.as_ref().map_or("this computer", |name| name.as_str());
    let mut lines =
        vec![format!("host     {name}, release {}, process {}", host.release, host.pid)];
    lines.push(match &host.server {
        None => "server   none yet: `collective join URL`".to_owned(),
        Some(server) => format!(
            "server   {}, {}",
            server.url,
            match (server.reachable, server.asked) {
                (true, _) => "answers",
                (false, true) if is_refused(host) => "is not trusted",
                (false, true) => "cannot be reached",
                (false, false) => "not asked yet",
            }
        ),
    });
    lines.push(match host.sessions.as_slice() {
        [] => "people   nobody is logged in".to_owned(),
        sessions => {
            let people: Vec<String> = sessions
                .iter()
                .map(|session| {
                    let is_over = session.certificate.as_ref().is_some_and(|it| it.ends <= now());
                    let offline = match session.online {
                        _ if is_over => ", and has ended: log in again",
                        true => "",
                        false => ", without the server",
                    };
                    format!("{} (since {}{offline})", session.user, text::ago(session.since, now()))
                })
                .collect();
            format!("people   {}", people.join(", "))
        }
    });
    lines.extend(host.sessions.iter().filter_map(|session| {
        let (user, problem) = (&session.user, session.problem.as_ref()?);
        let hint = problem.hint.as_ref().map(|hint| format!("\n         {}", text::plain(hint)));
        let why = text::plain(&problem.message);
        Some(format!("log-in   {user}: {why}{}", hint.unwrap_or_default()))
    }));
    lines.push(format!(
        "cache    {} of {}, {} fetched so far",
        ByteCount(host.cache.used_bytes),
        ByteCount(host.cache.capacity_bytes),
        ByteCount(host.cache.fetched_bytes)
    ));
    if host.sources.len() > 1 {
        lines.extend(host.sources.iter().map(|source| about_source(source, now())));
    }
    if host.metered {
        lines.push("ahead    nothing is fetched: the connection is metered".to_owned());
    }
    lines.push(match host.reports {
        true => {
            "reports  what is read of appliances, not by whom (--no-report: nothing)".to_owned()
        }
        false => "reports  nothing of what is read".to_owned(),
    });
    if let Some(accelerator) = &host.accelerator {
        lines.push(format!("runs on  {}: {}", accelerator.name, accelerator.why));
    }
    lines.join("\n")
}

fn about_source(source: &SourceStatus, now: Timestamp) -> String {
    let (label, name) = match &source.mirror {
        None => ("sources", "the server"),
        Some(url) => ("", url.as_str()),
    };
    let mut line = format!("{label:<9}{name}: {}", ByteCount(source.fetched_bytes));
    if let Some(dropped) = &source.dropped {
        let (since, reason) = (text::ago(dropped.since, now), text::plain(&dropped.reason));
        let again = match dropped.until.since(now) {
            _ if source.mirror.is_none() => "asked when no other has it".to_owned(),
            left if left.is_zero() => "tried with the next fetch".to_owned(),
            left => format!("tried again in {}", text::duration(left)),
        };
        line.push_str(&format!("\n         left out {since}, {again}: {reason}"));
    }
    line
}

/// Tells whether it is the host that does not want to speak with the server.
fn is_refused(host: &HostStatus) -> bool {
    host.sessions.iter().any(|session| session.problem.is_some())
}

fn work(operations: &[&Operation]) -> String {
    let rows = operations
        .iter()
        .map(|operation| {
            let appliance = operation.appliance.as_ref().map_or("-", ApplianceName::as_str);
            vec![
                operation.verb.clone(),
                appliance.to_owned(),
                operation.percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%")),
                operation.stage.clone(),
                operation.id.to_string(),
            ]
        })
        .collect();
    let columns =
        [words("WORK"), words("APPLIANCE"), figures("DONE"), words("STAGE"), words("OPERATION")];
    draw(&columns, rows, "")
}

fn detail(appliance: &ApplianceStatus) -> String {
    let mut lines = vec![format!("{}  {}", appliance.name, list::state(appliance.state))];
    let mut line = |label: &str, text: String| lines.push(format!("  {label:<11}{text}"));
    if let Some(reason) = &appliance.reason {
        line("because", reason.clone());
    }
    match (appliance.running, appliance.latest) {
        (Some(running), Some(latest)) if running != latest => {
            line("version", format!("{running}; {latest} waits for the next start"));
        }
        (Some(version), _) | (None, Some(version)) => line("version", version.to_string()),
        (None, None) => line("version", "none published yet".to_owned()),
    }
    if let Some(seconds) = appliance.boot_seconds {
        let took = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        line("boot", text::duration(took));
    }
    if let Some(held) = appliance.held {
        line("held", list::held(held));
    }
    if let Some(fetched) = &appliance.fetched {
        line("fetched", fetched_since_the_start(fetched));
    }
    if let Some(foretold) = &appliance.foretold {
        let part = text::part_of(foretold.foretold_bytes, foretold.read_bytes);
        let read = ByteCount(foretold.read_bytes);
        line("foretold", format!("{part} of the {read} that the last start read"));
    }
    if let Some(screen) = &appliance.screen {
        line("screen", format!("{screen} (VNC)"));
    }
    if let Some(disk) = &appliance.user_disk {
        let version = disk.version.map_or_else(|| "none yet".to_owned(), |v| v.to_string());
        let when = disk
            .published
            .map_or_else(String::new, |time| format!(", backed up {}", text::ago(time, now())));
        line("user disk", format!("{version}{when}; {}", list::backup(disk.backlog_bytes)));
        if let Some(problem) = &disk.problem {
            line("backup", format!("fails: {problem}"));
        }
        for file in &disk.kept {
            line("kept aside", file.clone());
        }
    }
    if let Some(lock) = &appliance.lock {
        let place = if lock.here { "this computer" } else { lock.host.as_str() };
        line("held by", format!("{place}, since {}", text::ago(lock.since, now())));
    }
    lines.join("\n")
}

/// Says what a guest's disk had fetched, which is not all that is here: the cache had some before.
fn fetched_since_the_start(fetched: &Fetched) -> String {
    match fetched.bytes {
        0 => "nothing since the start".to_owned(),
        bytes => {
            let (bytes, size) = (ByteCount(bytes), ByteCount(fetched.size_bytes));
            format!("{bytes} of {size} since the start ({})", text::percent(fetched.share))
        }
    }
}

#[cfg(test)]
mod tests {
    use collective_api::host::{
        ApplianceStatus, DroppedStatus, Fetched, Foretold, InstanceState, SourceStatus,
        UserDiskStatus,
    };
    use collective_model::{OperationId, Timestamp, Version};

    use super::{about_source, detail, needs_asking};

    fn running() -> ApplianceStatus {
        ApplianceStatus {
            name: "debian".parse().unwrap(),
            user: "ann".parse().unwrap(),
            latest: Version::new(2),
            state: InstanceState::Running,
            reason: None,
            running: Version::new(2),
            restart_needed: false,
            boot_seconds: Some(24.0),
            fetched: Some(Fetched { bytes: 0, size_bytes: 2_150_000_000, share: 0.0 }),
            foretold: Some(Foretold { read_bytes: 72_000_000, foretold_bytes: 71_000_000 }),
            user_disk: Some(UserDiskStatus { backlog_bytes: 7, ..UserDiskStatus::default() }),
            lock: None,
            held: None,
            screen: Some("/run/collective/m/1/vnc.sock".to_owned()),
            operation: None,
        }
    }

    #[test]
    fn one_appliance_in_detail_shows_its_screen_and_what_was_fetched() {
        insta::assert_snapshot!(detail(&running()), @r"
        debian  running
          version    2
          boot       24 s
          fetched    nothing since the start
          foretold   98.6% of the 72.0 MB that the last start read
          screen     /run/collective/m/1/vnc.sock (VNC)
          user disk  none yet; 7 B left
        ");
    }

    #[test]
    fn a_source_that_is_left_out_says_since_when_and_why() {
        let source = |mirror: Option<&str>, dropped| SourceStatus {
            mirror: mirror.map(str::to_owned),
            fetched_bytes: 3_200_000,
            failures: 1,
            late: 0,
            dropped,
        };
        let dropped = |until| DroppedStatus {
            since: Timestamp(1_000_000),
            until: Timestamp(until),
            reason: "it gave wrong bytes: packs/07/07".to_owned(),
        };
        let now = Timestamp(1_180_000);
        let lines = [
            source(None, None),
            source(Some("http://mirror/a"), Some(dropped(4_000_000))),
            source(Some("http://mirror/b"), Some(dropped(1_000_001))),
        ];
        let lines = lines.map(|source| about_source(&source, now)).join("\n");
        insta::assert_snapshot!(lines, @r"
        sources  the server: 3.20 MB
                 http://mirror/a: 3.20 MB
                 left out 3 min ago, tried again in 47 min: it gave wrong bytes: packs/07/07
                 http://mirror/b: 3.20 MB
                 left out 3 min ago, tried with the next fetch: it gave wrong bytes: packs/07/07
        ");
    }

    #[test]
    fn only_what_runs_and_has_a_user_disk_is_asked_for_a_backup() {
        let asked = running();
        assert!(needs_asking(&asked));
        assert!(!needs_asking(&ApplianceStatus { user_disk: None, ..asked.clone() }));
        let off = InstanceState::Stopped;
        assert!(!needs_asking(&ApplianceStatus { state: off, ..asked.clone() }));
        let operation = Some(OperationId([7; 16]));
        assert!(!needs_asking(&ApplianceStatus { operation, ..asked }));
    }
}
