//! `host.json`: what the host is and whose it is. Small, read at start, replaced whole when it changes.

use collective_api::identity::Certificate;
use collective_api::trust::{Anchor, ServerAddress};
use collective_model::{HostId, HostName, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::paths::Paths;
use crate::record;

/// What the host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) format: u32,
    pub(crate) name: Option<HostName>,
    /// Given by the server to members; a guest has none.
    pub(crate) id: Option<HostId>,
    pub(crate) server: Option<Server>,
}

/// The server that the host trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) address: ServerAddress,
    /// Its certificate authority.
    pub(crate) anchor: Anchor,
    /// This host's own certificate, if it is a member; its key is in `host.key`.
    pub(crate) certificate: Option<Certificate>,
}

/// The settings as they stand, and their file.
#[derive(Debug)]
pub(crate) struct SettingsStore {
    paths: Paths,
    current: watch::Sender<Settings>,
}

impl SettingsStore {
    pub(crate) fn open(paths: &Paths) -> Result<Self> {
        let settings = record::load(&paths.settings())?.unwrap_or_default();
        Ok(Self { paths: paths.clone(), current: watch::Sender::new(settings) })
    }

    pub(crate) fn get(&self) -> Settings {
        self.current.borrow().clone()
    }

    pub(crate) fn replace(&self, settings: Settings) -> Result<()> {
        record::store(&self.paths.settings(), &settings)?;
        self.current.send_replace(settings);
        Ok(())
    }
}
