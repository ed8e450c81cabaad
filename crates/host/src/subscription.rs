//! The life of a user disk on this host: a record, a pure planner that says the next step, and what each step does
//! to the record.
//!
//! ```text
//!            Begin          Upload/Settle            Rebase            Finish          DeleteFile
//!  layers ──────────▶ publishing ─────────▶ published ───────▶ published ──────▶ base+1 ─────────▶ no trace
//!    ▲                    │ head is another's                 (guest, if any)
//!    │ AddLayer, Freeze   ▼
//!  guest              lost ──(no guest)──▶ KeepAside ──▶ kept/
//! ```
//!
//! Every step is safe to repeat: a crash between a step's effect and its record makes the planner say the same step
//! again. The publication id, recorded before anything is uploaded and signed into the manifest, tells an own
//! commit from another host's. A lost lock moves layers aside; nothing here ever deletes a layer that is not published.

mod plan;

use collective_model::{Epoch, SubscriptionId, Timestamp, Version};
use collective_repository::Descriptor;
use serde::{Deserialize, Serialize};

pub(crate) use plan::{Facts, Guest, Head, Step, Want, next};

/// The format of the record.
const FORMAT: u32 = 1;

/// `subscription.json`: what this host knows of a user disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subscription {
    pub(crate) format: u32,
    pub(crate) id: SubscriptionId,
    pub(crate) repository: Descriptor,
    /// The lock that this host holds; 0: none that it knows of.
    pub(crate) epoch: Epoch,
    /// The version that the oldest layer lies on.
    pub(crate) base: Option<Version>,
    /// Numbers of the layers that are not published, oldest first; under a guest all but the last are frozen.
    pub(crate) layers: Vec<u64>,
    pub(crate) next_layer: u64,
    pub(crate) publishing: Option<Publishing>,
    /// The publication under way is committed as this version.
    pub(crate) published: Option<Version>,
    /// Layers that are published and that nothing uses.
    pub(crate) garbage: Vec<u64>,
    /// Why nothing more can be published.
    pub(crate) lost: Option<String>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) last_published: Option<Timestamp>,
}

/// A publication under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publishing {
    /// Signed into the manifest: an own commit is known by it.
    pub(crate) id: String,
    pub(crate) what: What,
}

/// What a publication is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// The empty disk that the appliance brings.
    Template,
    /// So many layers, from the oldest.
    Layers(usize),
    /// An old version again.
    Undo(Version),
}

/// Layers that could not be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The directory below `kept/` that holds them.
    pub(crate) name: String,
    /// The version that they lie on.
    pub(crate) base: Option<Version>,
    pub(crate) layers: Vec<u64>,
    pub(crate) why: String,
}

impl Subscription {
    /// A user disk of which nothing is here yet.
    pub(crate) fn new(id: SubscriptionId, repository: Descriptor) -> Self {
        Self {
            format: FORMAT,
            id,
            repository,
            epoch: Epoch(0),
            base: None,
            layers: Vec::new(),
            next_layer: 1,
            publishing: None,
            published: None,
            garbage: Vec::new(),
            lost: None,
            kept: Vec::new(),
            last_published: None,
        }
    }

    /// Records that the server has another user disk now; nothing of this one is left but what lies aside or is to be deleted.
    pub(crate) fn replaced(&mut self, id: SubscriptionId, repository: Descriptor) {
        let (garbage, kept) = (std::mem::take(&mut self.garbage), std::mem::take(&mut self.kept));
        let next_layer = self.next_layer;
        *self = Self { next_layer, garbage, kept, ..Self::new(id, repository) };
    }

    /// Tells whether something written here is not at the server.
    pub(crate) fn has_unpublished(&self) -> bool {
        !self.layers.is_empty() || self.publishing.is_some()
    }

    /// Records that a new layer lies on top; its file exists.
    pub(crate) fn layer_added(&mut self, number: u64) {
        self.layers.push(number);
        self.next_layer = number + 1;
    }

    /// Records what is about to be published.
    pub(crate) fn begun(&mut self, id: String, what: What) {
        self.publishing = Some(Publishing { id, what });
    }

    /// Records that the publication under way is committed.
    pub(crate) fn settled(&mut self, version: Version, now: Timestamp) {
        self.published = Some(version);
        self.last_published = Some(now);
    }

    /// Records that nothing uses the published layers any more.
    pub(crate) fn finished(&mut self) {
        let count = self.published_layers();
        self.garbage.extend(self.layers.drain(..count));
        self.base = self.published.take().or(self.base);
        self.publishing = None;
    }

    /// Records the version that the next layer will lie on.
    pub(crate) fn adopted(&mut self, head: Version) {
        self.base = Some(head);
    }

    /// Records that a published layer's file is gone.
    pub(crate) fn deleted(&mut self, number: u64) {
        self.garbage.retain(|layer| *layer != number);
    }

    /// Records that another has the lock, or had it.
    pub(crate) fn lose(&mut self, why: String) {
        self.lost = Some(why);
        self.epoch = Epoch(0);
    }

    /// Records that the layers lie aside: the next start begins from the server's head.
    pub(crate) fn kept_aside(&mut self, name: String) {
        let layers = std::mem::take(&mut self.layers);
        let why = self.lost.take().unwrap_or_default();
        if !layers.is_empty() {
            self.kept.push(Kept { name, base: self.base, layers, why });
        }
        self.base = None;
        self.publishing = None;
    }

    /// Tells whether the publication under way makes something else of the disk than `base` and the layers: no guest can
    /// start before it is committed.
    pub(crate) fn is_replaced(&self) -> bool {
        let what = self.publishing.as_ref().map(|publishing| publishing.what);
        matches!(what, Some(What::Template | What::Undo(_)))
    }

    /// How many of the layers the publication under way takes.
    pub(crate) fn published_layers(&self) -> usize {
        match self.publishing.as_ref().map(|publishing| publishing.what) {
            Some(What::Layers(count)) => count.min(self.layers.len()),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests;
