//! `collective doctor`: one line for each thing that a start needs, and what to do where it is missing.
//!
//! What is found is looked at by pure functions ([`disk_space`], [`about_host`], …); looking itself is below them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use collective_api::ServerClient;
use collective_api::host::{CertificateStatus, HostStatus};
use collective_api::server::Upkeep;
use collective_model::{ByteCount, Error, ErrorKind, Result, Timestamp};
use collective_vm::accelerator::{Accelerator, Probed, probe};
use collective_vm::qemu::Qemu;
use serde::Serialize;

use crate::context::{Context, ServerArguments, now};
use crate::text;
use crate::verbs::appliance::check;

/// Less free space than this, and the next start may find no room for its layers and its cache.
const ROOM_BYTES: u64 = 4_000_000_000;

/// More than this between two clocks, and leases and fresh certificates look wrong to one side.
const SKEW: Duration = Duration::from_secs(30);

/// The exit code when something needs to be done: what is missing may be there next time.
const UNWELL: ErrorKind = ErrorKind::Unavailable;

/// Check whether this computer has what it needs
///
/// Looks at QEMU and what runs its guests, at disk space, at the host daemon, its server and the server's clock, who is
/// logged in and how long that is good, and the cache; for administrators also at what the server's checks of its repositories
/// found; one line each, with a hint where something is wrong. Changes nothing. Ends with code 6 if a check failed.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective doctor")]
pub struct Arguments {
    /// Directory of the host daemon
    #[arg(long, value_name = "DIR", env = "COLLECTIVE_HOST_DIR", hide_env_values = true)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArguments,
}

/// How well a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warning,
    Failed,
}

/// What a check found.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    text: String,
    hint: Option<String>,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let dir = arguments.dir.clone().unwrap_or_else(|| context.directories.host.clone());
    let mut findings = machines().await;
    findings.push(disk_space(&dir, free_bytes(&dir)));
    match daemon(context).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(failed("daemon", &error)),
    }
    findings.extend(repositories(&arguments.server, context).await);
    for finding in &findings {
        context.output.say("check", finding, || finding.lines());
    }
    let is_well = findings.iter().all(|finding| finding.level != Level::Failed);
    Ok(if is_well { 0 } else { UNWELL.exit_code() })
}

impl Finding {
    fn lines(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failed => "failed",
        };
        let line = format!("{level:<9}{:<13}{}", self.check, text::plain(&self.text));
        match &self.hint {
            Some(hint) => format!("{line}\n{:<22}hint: {}", "", text::plain(hint)),
            None => line,
        }
    }
}

fn ok(check: &'static str, text: String) -> Finding {
    Finding { check, level: Level::Ok, text, hint: None }
}

fn warning(check: &'static str, text: String, hint: &str) -> Finding {
    Finding { check, level: Level::Warning, text, hint: Some(hint.to_owned()) }
}

fn failed(check: &'static str, error: &Error) -> Finding {
    let hint = error.hint().map(str::to_owned);
    Finding { check, level: Level::Failed, text: error.chain(), hint }
}

/// Looks at the daemon, and through it at the server.
async fn daemon(context: &Context) -> Result<Vec<Finding>> {
    let client = context.host()?;
    // The daemon asks the server for this one, and knows then how it stands.
    drop(client.appliances().await);
    let host = client.host().await?;
    let mut findings = about_host(&host);
    findings.extend(certificates(&host, now()));
    let reaches = host.server.is_some_and(|server| server.reachable);
    if reaches && !host.sessions.is_empty() {
        let begin = now();
        let told = ServerClient::through(&client)?.server().await;
        // The server read its clock somewhere between our two readings; the middle is the best guess.
        let here = begin.after(now().since(begin) / 2);
        findings.push(match told {
            Ok(server) => clock(here, server.time),
            Err(error) => failed("clock", &error),
        });
    }
    Ok(findings)
}

/// Asks the server how its repositories are, where an administrator can: on its socket if one was named, else as who is logged in.
async fn repositories(arguments: &ServerArguments, context: &Context) -> Vec<Finding> {
    let upkeep = match context.server(arguments) {
        Ok(server) => server.upkeep().await,
        Err(error) => Err(error),
    };
    match upkeep {
        Ok(upkeep) => about_repositories(&upkeep, now()),
        Err(error) if arguments.is_named() => vec![failed("repositories", &error)],
        // Nobody is an administrator here, or other lines say what is wrong.
        Err(_) => Vec::new(),
    }
}

/// Says what the server knows of its repositories.
fn about_repositories(upkeep: &Upkeep, now: Timestamp) -> Vec<Finding> {
    let damaged = upkeep.damaged.iter().map(|it| {
        let what = match &it.user {
            None => it.appliance.to_string(),
            Some(user) => format!("the user disk of {user} for {}", it.appliance),
        };
        let message = format!("{what}: {}", check::lines(&it.check, now).join("; "));
        let hint = "restore the server's repositories from a backup; an appliance can also be published \
            again with --repair";
        failed("repositories", &Error::new(ErrorKind::Corrupt, message).with_hint(hint))
    });
    let oldest =
        upkeep.oldest_check.map(|oldest| format!(", the longest ago {}", text::ago(oldest, now)));
    let checked = format!(
        "{} of {} checked{}",
        upkeep.repositories - upkeep.unchecked.min(upkeep.repositories),
        upkeep.repositories,
        oldest.unwrap_or_default()
    );
    damaged.chain([ok("repositories", checked)]).collect()
}

/// Compares the clocks of this computer and of the server.
fn clock(here: Timestamp, there: Timestamp) -> Finding {
    let skew = here.since(there).max(there.since(here));
    let text = format!("{} from the server's", text::duration(skew));
    if skew <= SKEW {
        return ok("clock", text);
    }
    let hint =
        "set the clocks (apt-get install systemd-timesyncd): certificates and leases go by them";
    warning("clock", text, hint)
}

/// Looks for QEMU and at what runs its guests.
async fn machines() -> Vec<Finding> {
    let qemu = match Qemu::discover().await {
        Ok(qemu) => qemu,
        Err(error) => return vec![failed("qemu", &error)],
    };
    let found = ok("qemu", format!("{} at {}", qemu.release, qemu.program.display()));
    vec![found, accelerator(&probe(&qemu).await)]
}

fn accelerator(probed: &Probed) -> Finding {
    let text = format!("{}: {}", probed.accelerator, probed.why);
    match probed.accelerator {
        Accelerator::Kvm => ok("accelerator", text),
        Accelerator::Tcg => {
            warning("accelerator", text, "everything works, several times slower than with KVM")
        }
    }
}

/// Free bytes where `dir` is, or will be.
fn free_bytes(dir: &Path) -> Result<u64> {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(there).map(|space| space.f_bavail.saturating_mul(space.f_frsize)).map_err(
        |errno| {
            let message = format!("cannot ask for the free space of {}", there.display());
            Error::new(ErrorKind::Unavailable, message).with_source(std::io::Error::from(errno))
        },
    )
}

fn disk_space(dir: &Path, free: Result<u64>) -> Finding {
    match free {
        Ok(bytes) if bytes >= ROOM_BYTES => {
            ok("disk space", format!("{} free for {}", ByteCount(bytes), dir.display()))
        }
        Ok(bytes) => warning(
            "disk space",
            format!("only {} free for {}", ByteCount(bytes), dir.display()),
            "make room, or put the host elsewhere with `collective host --dir`",
        ),
        Err(error) => failed("disk space", &error),
    }
}

/// Looks at what the daemon says of itself.
fn about_host(host: &HostStatus) -> Vec<Finding> {
    let mut findings =
        vec![ok("daemon", format!("release {}, process {}", host.release, host.pid))];
    if host.release != env!("CARGO_PKG_VERSION") {
        let text =
            format!("release {}, but this command is {}", host.release, env!("CARGO_PKG_VERSION"));
        findings.push(warning("release", text, "restart the daemon; appliances go on running"));
    }
    let problem = host.sessions.iter().find_map(|session| session.problem.clone());
    findings.push(match &host.server {
        None => warning("server", "none yet".to_owned(), "`collective join URL`"),
        Some(server) if !server.asked => {
            warning("server", format!("{} not asked yet", server.url), "`collective login USER`")
        }
        Some(server) if !server.reachable && problem.is_some() => Finding {
            check: "server",
            level: Level::Failed,
            text: format!("{} is not trusted", server.url),
            hint: Some("see the log-in".to_owned()),
        },
        Some(server) if server.reachable => ok("server", format!("{} answers", server.url)),
        Some(server) => {
            let message = format!("{} cannot be reached", server.url);
            failed(
                "server",
                &Error::new(ErrorKind::Unavailable, message).with_hint(
                    "what runs goes on, what is in the cache starts; backups wait until it is back",
                ),
            )
        }
    });
    findings.push(match (host.sessions.as_slice(), problem) {
        (_, Some(problem)) => failed("log-in", &problem.into()),
        ([], _) => warning("log-in", "nobody is logged in".to_owned(), "`collective login USER`"),
        (sessions, None) => {
            let names: Vec<String> =
                sessions.iter().map(|session| session.user.to_string()).collect();
            ok("log-in", names.join(", "))
        }
    });
    let cache = &host.cache;
    findings.push(ok(
        "cache",
        format!("{} of {}", ByteCount(cache.used_bytes), ByteCount(cache.capacity_bytes)),
    ));
    findings
}

/// Looks at the certificates that the daemon has of the server: it renews them itself as long as it reaches the server.
fn certificates(host: &HostStatus, now: Timestamp) -> Vec<Finding> {
    let own = host.certificate.as_ref().map(|certificate| {
        let hint = "the next `collective login` makes this computer known again; with a new token \
            (`collective join URL --token-file FILE`) it is a member";
        certificate_of("certificate", "this computer's certificate", certificate, hint, now)
    });
    let people = host.sessions.iter().filter_map(|session| {
        let hint = format!(
            "`collective login {}`; what runs goes on, and backups wait until then",
            session.user
        );
        let what = format!("the log-in of {}", session.user);
        Some(certificate_of("certificate", &what, session.certificate.as_ref()?, &hint, now))
    });
    own.into_iter().chain(people).collect()
}

fn certificate_of(
    check: &'static str,
    what: &str,
    certificate: &CertificateStatus,
    over: &str,
    now: Timestamp,
) -> Finding {
    let CertificateStatus { ends, renewal, problem } = certificate;
    if now >= *ends {
        let message = format!("{what} ended {}", text::ago(*ends, now));
        return failed(check, &Error::new(ErrorKind::Unavailable, message).with_hint(over));
    }
    let good = format!("{what} ends {}", text::until(*ends, now));
    let half_way = renewal.after(ends.since(*renewal) / 2);
    match problem {
        None if now < half_way => ok(check, format!("{good}, and is renewed before")),
        problem => {
            let why = problem.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            let text = format!("{good}, and is not renewed yet{why}");
            warning(check, text, "let this computer reach the server before then")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use collective_api::host::{CacheStatus, CertificateStatus, HostStatus, ServerStatus, Session};
    use collective_api::server::{CheckStatus, DamagedObject, DamagedRepository, Upkeep};
    use collective_model::Timestamp;
    use collective_vm::accelerator::{Accelerator, Probed};

    use super::{
        Level, about_host, about_repositories, accelerator, certificates, clock, disk_space,
        free_bytes,
    };

    fn host(server: Option<ServerStatus>) -> HostStatus {
        HostStatus {
            name: None,
            id: None,
            release: "0.0.1".to_owned(),
            pid: 7,
            server,
            certificate: None,
            sessions: Vec::new(),
            cache: CacheStatus::default(),
            sources: Vec::new(),
            accelerator: None,
            publish_minutes: 10,
            reports: true,
            metered: false,
        }
    }

    #[test]
    fn a_server_that_cannot_be_reached_fails_and_none_at_all_is_a_warning() {
        let level = |host: &HostStatus| {
            about_host(host).into_iter().find(|finding| finding.check == "server").unwrap().level
        };
        assert_eq!(level(&host(None)), Level::Warning);
        let away = ServerStatus {
            url: "https://server:7443".to_owned(),
            fingerprint: String::new(),
            reachable: false,
            asked: true,
        };
        assert_eq!(level(&host(Some(away.clone()))), Level::Failed);
        assert_eq!(level(&host(Some(ServerStatus { reachable: true, ..away }))), Level::Ok);
    }

    #[test]
    fn a_daemon_of_another_release_is_told() {
        let findings = about_host(&host(None));
        assert!(findings.iter().any(|finding| finding.check == "release"));
    }

    #[test]
    fn slow_machines_are_a_warning_that_says_why() {
        let why = "/dev/kvm cannot be opened".to_owned();
        let finding = accelerator(&Probed { accelerator: Accelerator::Tcg, why });
        assert_eq!(finding.level, Level::Warning);
        insta::assert_snapshot!(finding.lines(), @r"
        warning  accelerator  tcg: /dev/kvm cannot be opened
                              hint: everything works, several times slower than with KVM
        ");
    }

    #[test]
    fn damage_at_the_server_fails_and_names_whose_it_is() {
        let damage = DamagedObject { object: "packs/ab".to_owned(), what: "it is cut".to_owned() };
        let bad = CheckStatus {
            finished: Some(Timestamp(0)),
            damaged: 1,
            damages: vec![damage],
            ..CheckStatus::default()
        };
        let upkeep = Upkeep {
            user_disks: None,
            repositories: 5,
            unchecked: 2,
            oldest_check: Some(Timestamp(0)),
            damaged: vec![DamagedRepository {
                appliance: "debian".parse().unwrap(),
                user: Some("ann".parse().unwrap()),
                check: bad,
            }],
        };
        let found = about_repositories(&upkeep, Timestamp(60_000));
        assert_eq!(found[0].level, Level::Failed);
        insta::assert_snapshot!(found.iter().map(super::Finding::lines).collect::<Vec<_>>().join("\n"), @r"
        failed   repositories the user disk of ann for debian: 1 min ago, 0 B read, 1 damaged;   packs/ab: it is cut
                              hint: restore the server's repositories from a backup; an appliance can also be published again with --repair
        ok       repositories 3 of 5 checked, the longest ago 1 min ago
        ");
    }

    #[test]
    fn clocks_that_differ_are_a_warning_whichever_is_ahead() {
        let (early, late) = (Timestamp(0), Timestamp(60_000));
        assert_eq!(clock(early, late).level, Level::Warning);
        assert_eq!(clock(late, early).level, Level::Warning);
        assert_eq!(clock(early, Timestamp(30_000)).level, Level::Ok);
    }

    #[test]
    fn certificates_are_well_until_they_are_not_renewed_and_over_with_what_to_do() {
        let day = |days: i64| Timestamp(days * 24 * 3600 * 1000);
        let certificate = |problem: Option<&str>| CertificateStatus {
            ends: day(30),
            renewal: day(20),
            problem: problem.map(str::to_owned),
        };
        let lines = |problem: Option<&str>, now: i64| {
            let user = "ann".parse().unwrap();
            let certificate = Some(certificate(problem));
            let session = Session {
                user,
                online: true,
                since: day(0),
                certificate: certificate.clone(),
                problem: None,
            };
            let host = HostStatus { certificate, sessions: vec![session], ..host(None) };
            let found = certificates(&host, day(now));
            found.iter().map(super::Finding::lines).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(lines(None, 24), @r"
        ok       certificate  this computer's certificate ends in 6 d, and is renewed before
        ok       certificate  the log-in of ann ends in 6 d, and is renewed before
        ");
        insta::assert_snapshot!(lines(None, 26), @r"
        warning  certificate  this computer's certificate ends in 4 d, and is not renewed yet
                              hint: let this computer reach the server before then
        warning  certificate  the log-in of ann ends in 4 d, and is not renewed yet
                              hint: let this computer reach the server before then
        ");
        insta::assert_snapshot!(lines(Some("cannot reach the server"), 21), @r"
        warning  certificate  this computer's certificate ends in 9 d, and is not renewed yet: cannot reach the server
                              hint: let this computer reach the server before then
        warning  certificate  the log-in of ann ends in 9 d, and is not renewed yet: cannot reach the server
                              hint: let this computer reach the server before then
        ");
        insta::assert_snapshot!(lines(None, 32), @r"
        failed   certificate  this computer's certificate ended 2 d ago
                              hint: the next `collective login` makes this computer known again; with a new token (`collective join URL --token-file FILE`) it is a member
        failed   certificate  the log-in of ann ended 2 d ago
                              hint: `collective login ann`; what runs goes on, and backups wait until then
        ");
        assert_eq!(certificates(&host(None), day(0)), []);
    }

    #[test]
    fn little_room_is_a_warning() {
        let dir = Path::new("/var/lib/collective");
        assert_eq!(disk_space(dir, Ok(5_000_000_000)).level, Level::Ok);
        assert_eq!(disk_space(dir, Ok(1_000_000)).level, Level::Warning);
        assert!(free_bytes(Path::new("/no/such/directory")).unwrap() > 0);
    }
}
