//! Operations: work that may take longer than a second, and the events that tell of it.

use collective_model::{ApplianceName, OperationId, Progress, Timestamp, UserName, Version};
use serde::{Deserialize, Serialize};

use super::ApplianceStatus;
use crate::failure::Failure;

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Goes on.
    Running,
    /// Has done what was asked.
    Done,
    /// Has failed, and says why.
    Failed,
    /// Was cancelled.
    Cancelled,
}

impl OperationState {
    /// Tells whether nothing more will happen.
    #[must_use]
    pub fn is_over(self) -> bool {
        self != Self::Running
    }
}

/// Work that takes its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What was asked: `start`, `stop`, `publish`, …
    pub verb: String,
    /// Of which appliance.
    pub appliance: Option<ApplianceName>,
    /// By whom.
    pub user: Option<UserName>,
    /// How it stands.
    pub state: OperationState,
    /// What it does just now, for people: `taking the lock`.
    pub stage: String,
    /// Bytes worked through in this stage.
    pub done_bytes: u64,
    /// Bytes in this stage, once known.
    pub total_bytes: Option<u64>,
    /// Bytes that crossed the network or were stored for it.
    pub moved_bytes: u64,
    /// How far it is in all, where that can be said.
    pub percent: Option<u8>,
    /// Whether it can be cancelled.
    pub may_cancel: bool,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<Failure>,
    /// What came of it; its shape depends on the verb ([`StartResult`] for `start`).
    pub result: Option<serde_json::Value>,
}

impl Operation {
    /// Returns its figures of bytes.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
            moved_bytes: self.moved_bytes,
        }
    }
}

/// What came of a start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartResult {
    /// The version that runs.
    pub version: Version,
    /// Whether it ran before it was asked for.
    #[serde(default)]
    pub ran_already: bool,
    /// Seconds from the request until the guest's agent answered; none if it has no agent.
    pub boot_seconds: Option<f64>,
    /// The share of the system disk that is here, from 0 to 1.
    pub fetched_share: f64,
    /// Bytes that crossed the network for this start.
    pub fetched_bytes: u64,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// To an operation.
    Operation(Box<Operation>),
    /// To an appliance.
    Appliance(Box<ApplianceStatus>),
}
