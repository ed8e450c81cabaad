//! The API of the server: what it takes and gives over HTTPS and on its administrators' socket, and [`ServerClient`].
//!
//! ```text
//! GET    /v1/server                                    ServerInfo                              anybody
//! POST   /v1/login/parameters                          LoginParametersRequest -> PasswordParameters
//! POST   /v1/hosts/join                                JoinRequest -> JoinReply                a token
//! POST   /v1/login                                     LoginRequest -> LoginReply              a password; a guest host is introduced by it
//! POST   /v1/logout                                    revokes the device that asks            a person's device
//! POST   /v1/certificate                               RenewRequest -> Issued                  host or device
//! GET    /v1/profile                                   Profile (with ETag)                     a person's device
//! PUT    /v1/password                                  PasswordChange                          a person's device
//! POST   /v1/subscriptions                             SubscribeRequest -> Subscription
//! DELETE /v1/subscriptions/{id}
//! POST   /v1/subscriptions/{id}/lock                   TakeLock -> Lock
//! PUT    /v1/subscriptions/{id}/lock                   RenewLock -> Lock
//! DELETE /v1/subscriptions/{id}/lock?epoch=            release
//! GET, HEAD, PUT /v1/repositories/{id}/{object name}   objects; PUT of a manifest publishes (header Collective-Epoch)
//! GET    /v1/repositories/{id}/?prefix=                list of objects
//! POST   /v1/popularity/{repository}                   ReadReport                              a person's device
//! GET    /v1/popularity/{repository}/{version}         Popularity or null                      who may read the appliance
//!
//! administrators:
//! GET, POST /v1/users; DELETE /v1/users/{name}; GET /v1/users/{name}/keybag; PUT /v1/users/{name}/password
//! GET, POST /v1/groups; DELETE /v1/groups/{name}; PUT, DELETE /v1/groups/{name}/members/{user}
//! GET /v1/grants; PUT, DELETE /v1/grants/{appliance}/{group}
//! GET, POST /v1/tokens; DELETE /v1/tokens/{id};  GET /v1/hosts; DELETE /v1/hosts/{id};  GET /v1/audit
//! GET, POST /v1/appliances; GET, DELETE /v1/appliances/{name}; POST /v1/appliances/{name}/verify|prune
//! PUT /v1/appliances/{name}/retention, /v1/retention;  GET /v1/upkeep
//! ```

mod account;
mod appliance;
mod client;
mod popularity;
mod subscription;
mod upkeep;

pub use account::{
    AuditEntry, CreateGroup, CreateToken, CreateUser, Grant, Group, GuestHost, HostEntry, Issued,
    JoinReply, JoinRequest, LoginParametersRequest, LoginReply, LoginRequest, PasswordChange,
    RenewRequest, ServerInfo, Token, TokenCreated, User,
};
pub use appliance::{Appliance, CreateAppliance};
pub use client::ServerClient;
pub use popularity::{
    PopularRun, Popularity, REPORT_RUNS_MAX, ReadPart, ReadReport, RegionRun, VersionReads,
};
pub use subscription::{
    Lock, Profile, ProfileAppliance, RenewLock, SubscribeRequest, Subscription, TakeLock,
};
pub use upkeep::{
    CheckStatus, DamagedObject, DamagedRepository, KeptVersion, PruneReport, PruneRequest,
    SetRetention, Upkeep, VerifyReport,
};

/// The header that carries the fencing number of a lock with every write to a user disk's repository.
pub const EPOCH_HEADER: &str = "Collective-Epoch";
