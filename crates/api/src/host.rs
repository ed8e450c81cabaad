//! The API of the host daemon: what its Unix socket takes and gives, and [`HostClient`], which speaks it.
//!
//! ```text
//! GET    /v1/host                              HostStatus
//! POST   /v1/contact                           ContactRequest -> Contact (first contact: fingerprint)
//! POST   /v1/join, /v1/login, /v1/logout       JoinRequest, LoginRequest -> Session, LogoutRequest
//! GET    /v1/appliances[/{name}]               [ApplianceStatus]
//! POST   /v1/appliances/{name}/start|stop|reset|undo|publish|delete    …Request -> Operation
//! POST   /v1/appliances/{name}/exec            ExecRequest -> ExecReply
//! GET    /v1/appliances/{name}/versions        Versions
//! GET    /v1/operations[/{id}[/events]]        Operation; events: SSE, one Operation a change, ends when it ended
//! DELETE /v1/operations/{id}                   cancel
//! GET    /v1/events                            SSE of Event
//! ANY    /server/…                             passed on to the server, with the user's credentials
//! ```
//!
//! Who asks is the session of the header [`USER_HEADER`]; without it, the only session there is.

mod client;
mod events;
mod operation;
mod request;
mod status;

pub use client::{HostClient, HostEvents, OperationEvents};
pub use operation::{Event, Operation, OperationState, StartResult};
pub use request::{
    Contact, ContactRequest, DeleteRequest, Empty, ExecReply, ExecRequest, HoldRequest,
    JoinRequest, LoginRequest, LogoutRequest, StartRequest, StopRequest, TrimRequest, UndoRequest,
};
pub use status::{
    AcceleratorStatus, ApplianceStatus, CacheReport, CacheStatus, CertificateStatus, DroppedStatus,
    Fetched, Foretold, Held, HostStatus, InstanceState, LockHolder, ServerStatus, Session,
    SourceStatus, Stay, UserDiskStatus, VersionStatus, Versions,
};

/// The header that names the session of a request.
pub const USER_HEADER: &str = "collective-user";
