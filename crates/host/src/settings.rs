//! `host.json`: what the host is and whose it is. Small, read at start, replaced whole when it changes.

use collective_api::identity::Certificate;
use collective_api::server::Issued;
use collective_api::trust::{Anchor, ServerAddress};
use collective_model::{HostId, HostName, Result, Timestamp};
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
    /// How long that is good; not known of one that an earlier release got.
    #[serde(default)]
    pub(crate) life: Option<Life>,
}

/// How long a certificate is good, as the server said when it gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    /// When it came here.
    pub(crate) begins: Timestamp,
    pub(crate) ends: Timestamp,
}

impl Life {
    pub(crate) fn of(issued: &Issued, now: Timestamp) -> Self {
        Self { begins: now, ends: issued.expires }
    }

    /// From when on a new certificate is asked for: a third of the life is left, in which the server may be away.
    pub(crate) fn renewal(self) -> Timestamp {
        let third_ms = self.ends.since(self.begins).as_millis() / 3;
        Timestamp(self.ends.0.saturating_sub(i64::try_from(third_ms).unwrap_or(i64::MAX)))
    }

    pub(crate) fn is_over(self, now: Timestamp) -> bool {
        now >= self.ends
    }
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

    /// Tells of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<Settings> {
        self.current.subscribe()
    }

    pub(crate) fn replace(&self, settings: Settings) -> Result<()> {
        record::store(&self.paths.settings(), &settings)?;
        self.current.send_replace(settings);
        Ok(())
    }

    /// Exchanges the host's certificate for a new one of the same key; nothing happens if `old` is not its certificate any more.
    pub(crate) fn renew(&self, old: &Certificate, new: Certificate, life: Life) -> Result<()> {
        let mut written = Ok(());
        self.current.send_if_modified(|settings| {
            let server = settings.server.as_mut();
            let server = server.filter(|server| server.certificate.as_ref() == Some(old));
            let Some(server) = server else { return false };
            server.certificate = Some(new);
            server.life = Some(life);
            written = record::store(&self.paths.settings(), &*settings);
            true
        });
        written
    }
}

#[cfg(test)]
mod tests {
    use collective_model::Timestamp;

    use super::Life;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
        let life = Life { begins: Timestamp(1_000), ends: Timestamp(4_000) };
        assert_eq!(life.renewal(), Timestamp(3_000));
        assert!(!life.is_over(Timestamp(3_999)) && life.is_over(Timestamp(4_000)));
        let backwards = Life { begins: Timestamp(4_000), ends: Timestamp(1_000) };
        assert_eq!(backwards.renewal(), Timestamp(1_000));
    }
}
