//! The planner: from the record and the facts, the one next step of a user disk. Pure.
//!
//! A step has nothing left to decide. No step: there is nothing to do, or a fact is missing (the head while the
//! server is away), and the same question is asked again when facts change.

use collective_model::Version;

use super::{Subscription, What};

/// What the outside looks like now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// What the running guest uses; none if no guest runs.
    pub(crate) guest: Option<Guest>,
    /// The head of the repository; none while it cannot be asked.
    pub(crate) head: Option<Head>,
    pub(crate) want: Want,
    /// Whether anything was written to the newest layer.
    pub(crate) top_dirty: bool,
}

/// What a running guest's user disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    /// Its layers, oldest first.
    pub(crate) layers: Vec<u64>,
}

/// The head of a repository: nothing yet, or a version and the id of the publication that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) version: Option<Version>,
    pub(crate) id: String,
}

/// What is wished of a user disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing: only what a crash left is put right.
    #[default]
    Rest,
    /// A base for the next start.
    Open,
    /// Everything written so far at the server.
    Backup,
    /// An old version on top; everything written before is backed up first.
    Undo(Version),
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Move the layers to `kept/`.
    KeepAside,
    /// Delete the file of a published layer.
    DeleteFile(u64),
    /// Make a file for a new layer.
    AddLayer(u64),
    /// Put the newest layer on top of the guest's.
    Freeze { old: u64, new: u64 },
    /// Record what is to be published.
    Begin(What),
    /// Publish as the version after `base`.
    Upload(What),
    /// Record that the publication is committed.
    Settle(Version),
    /// Put the guest's remaining layers on the new version.
    Rebase { version: Version, gone: Vec<u64> },
    /// Record that the published layers are no longer used.
    Finish,
    /// Record the version to work on.
    Adopt(Version),
    /// Record that another published, and why nothing more can be.
    Lose(String),
}

/// Returns the next step of a user disk.
pub(crate) fn next(record: &Subscription, facts: &Facts) -> Option<Step> {
    if record.lost.is_some() {
        return facts.guest.is_none().then_some(Step::KeepAside);
    }
    if let Some(layer) = record.garbage.first() {
        return Some(Step::DeleteFile(*layer));
    }
    if let Some(version) = record.published {
        return Some(after_commit(record, facts, version));
    }
    if let Some(freeze) = missing_freeze(record, facts) {
        return Some(freeze);
    }
    if record.publishing.is_some() {
        return match (&facts.head, facts.want) {
            (Some(head), _) => under_way(record, head),
            (None, Want::Open) => own_layer(record),
            (None, _) => None,
        };
    }
    match facts.want {
        Want::Rest => None,
        Want::Open => open(record, facts.head.as_ref()).or_else(|| own_layer(record)),
        Want::Backup => backup(record, facts),
        Want::Undo(version) => backup(record, facts)
            .or_else(|| open(record, facts.head.as_ref()))
            .or_else(|| facts.head.as_ref().map(|_| Step::Begin(What::Undo(version)))),
    }
}

/// The commit is done: the guest leaves the published layers, then the record does.
fn after_commit(record: &Subscription, facts: &Facts, version: Version) -> Step {
    let gone = &record.layers[..record.published_layers()];
    match &facts.guest {
        Some(guest) if guest.layers.iter().any(|layer| gone.contains(layer)) => {
            Step::Rebase { version, gone: gone.to_vec() }
        }
        _ => Step::Finish,
    }
}

/// A layer was recorded, and the crash came before the guest wrote to it.
fn missing_freeze(record: &Subscription, facts: &Facts) -> Option<Step> {
    let (guest, new) = (facts.guest.as_ref()?, *record.layers.last()?);
    let old = *guest.layers.last()?;
    (old != new).then_some(Step::Freeze { old, new })
}

/// A publication was begun: it is committed, or is uploaded again, or another was faster.
fn under_way(record: &Subscription, head: &Head) -> Option<Step> {
    let publishing = record.publishing.as_ref()?;
    let due = Version::after(record.base);
    Some(if head.version == record.base {
        Step::Upload(publishing.what)
    } else if head.version == Some(due) && head.id == publishing.id {
        Step::Settle(due)
    } else {
        Step::Lose(published_elsewhere(record, head))
    })
}

/// A guest writes to a layer of its own: never to one that a publication takes, which is deleted once it is published.
fn own_layer(record: &Subscription) -> Option<Step> {
    let has_none = record.layers.len() == record.published_layers();
    (has_none && record.base.is_some() && !record.is_replaced())
        .then_some(Step::AddLayer(record.next_layer))
}

/// What lies between the record and a disk on the repository's head.
fn open(record: &Subscription, head: Option<&Head>) -> Option<Step> {
    let head = head?;
    if head.version == record.base && record.base.is_some() {
        return None;
    }
    if !record.layers.is_empty() {
        return Some(Step::Lose(published_elsewhere(record, head)));
    }
    Some(match head.version {
        Some(version) => Step::Adopt(version),
        None => Step::Begin(What::Template),
    })
}

/// What lies between the record and a disk that is safe at the server.
fn backup(record: &Subscription, facts: &Facts) -> Option<Step> {
    let count = record.layers.len();
    if count == 0 {
        return None;
    }
    if facts.head.as_ref().is_some_and(|head| head.version != record.base) {
        return facts.head.as_ref().map(|head| Step::Lose(published_elsewhere(record, head)));
    }
    let closed = if facts.guest.is_some() { count - 1 } else { count };
    if closed == 0 {
        return facts.top_dirty.then_some(Step::AddLayer(record.next_layer));
    }
    facts.head.as_ref().map(|_| Step::Begin(What::Layers(closed)))
}

fn published_elsewhere(record: &Subscription, head: &Head) -> String {
    let base = record.base.map_or_else(|| "nothing".to_owned(), |base| format!("version {base}"));
    match head.version {
        Some(version) => format!(
            "another host published version {version} of this user disk; the changes here lie on {base}"
        ),
        None => format!("the repository is empty, and the changes here lie on {base}"),
    }
}
