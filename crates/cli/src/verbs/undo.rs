//! `collective undo`: takes the user disk back to an old version, after showing which.

use clap::Args;
use collective_api::host::{UndoRequest, VersionStatus, Versions};
use collective_model::{ApplianceName, Error, ErrorKind, Result, Version};

use crate::context::{Context, now};
use crate::text;
use crate::wait::{self, Ended};

/// Take the user disk of an appliance back to an older version
///
/// Nothing is lost by it: what is there now is backed up first, and the old state is added as a new version on top, so
/// an undo can be undone in the same way. The appliance must be off. `collective versions` lists the versions.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective undo debian\n  collective undo debian --to 7")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// The version of the user disk to go back to; without it, the one before the latest
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let name = &arguments.appliance;
    let versions = client.versions(name).await?;
    let target = target(name, &versions, arguments.to)?;
    if !arguments.yes {
        context.prompt.confirm(&format!(
            "Take the user disk of `{name}` back to version {}, from {}?\n\
             What is there now stays as a version that you can return to.",
            target.version,
            text::ago(target.time, now())
        ))?;
    }
    let request = UndoRequest { to: Some(target.version) };
    let operation = client.undo(name, &request).await?;
    match wait::finish(context, &client, operation, true).await? {
        Ended::Done(operation) => {
            context.output.say("operation", &operation, || {
                format!("the user disk of {name} is as it was in version {}", target.version)
            });
            Ok(0)
        }
        Ended::Left => Ok(wait::INTERRUPTED),
    }
}

/// Finds the version that is meant; the list is newest first.
fn target<'a>(
    name: &ApplianceName,
    versions: &'a Versions,
    to: Option<Version>,
) -> Result<&'a VersionStatus> {
    let disk = &versions.user_disk;
    let found = match to {
        Some(version) => disk.iter().find(|status| status.version == version),
        None => disk.get(1),
    };
    found.ok_or_else(|| {
        let message = match to {
            Some(version) => format!("the user disk of `{name}` has no version {version}"),
            None => format!("the user disk of `{name}` has no version before its latest"),
        };
        Error::new(ErrorKind::NotFound, message)
            .with_hint(format!("`collective versions {name}` lists those that it has"))
    })
}

#[cfg(test)]
mod tests {
    use collective_api::host::{VersionStatus, Versions};
    use collective_model::{ErrorKind, Timestamp, Version};

    use super::target;

    fn versions(numbers: &[u64]) -> Versions {
        let user_disk = numbers
            .iter()
            .map(|number| VersionStatus {
                version: Version::new(*number).unwrap(),
                time: Timestamp(0),
                size_bytes: 0,
                notes: String::new(),
                stays: None,
            })
            .collect();
        Versions { user_disk, ..Versions::default() }
    }

    #[test]
    fn an_undo_without_a_number_goes_to_the_one_before_the_latest() {
        let name = "debian".parse().unwrap();
        let versions = versions(&[7, 5, 4]);
        assert_eq!(target(&name, &versions, None).unwrap().version.number(), 5);
        assert_eq!(target(&name, &versions, Version::new(4)).unwrap().version.number(), 4);
    }

    #[test]
    fn a_version_that_is_not_there_is_named() {
        let name = "debian".parse().unwrap();
        let error = target(&name, &versions(&[2, 1]), Version::new(6)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "the user disk of `debian` has no version 6");
        assert!(target(&name, &versions(&[1]), None).is_err());
    }
}
