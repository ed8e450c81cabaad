//! What `push` and `pull` share: the way to a registry of containers, and who we are there.
//!
//! Credentials are those that other tools keep when somebody logs in (`skopeo login`, `podman login`, `docker login`); there is no
//! argument for them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use collective_model::{ByteCount, Error, ErrorKind, Result, Version};
use collective_repository::Repository;
use collective_repository::backend::{Backend, Credentials, Oci, RegistryReference};
use serde::{Deserialize, Serialize};

use crate::progress::Meter;
use crate::verbs::names;

/// How a registry is reached.
#[derive(Args, Clone, Debug)]
pub struct RegistryArguments {
    /// Speak HTTP without TLS; registries on this very computer are spoken to so in any case
    #[arg(long)]
    plain_http: bool,
}

/// What was copied, for people and programs.
#[derive(Debug, Serialize)]
pub struct Copied {
    pub appliance: String,
    pub registry: String,
    pub versions: Vec<Version>,
    pub copied_bytes: u64,
    /// Who signed the versions.
    pub publisher: String,
}

impl Copied {
    pub fn text(&self, done: &str, there: &str) -> String {
        let (Some(_), appliance) = (self.versions.first(), &self.appliance) else {
            return format!("{}: {there} has every version already", self.appliance);
        };
        let versions = names(&self.versions);
        let copied = ByteCount(self.copied_bytes);
        format!("{appliance} {versions} {done}: {copied} sent, signed by {}", self.publisher)
    }
}

impl RegistryArguments {
    /// Opens a place in a registry; asks nobody yet.
    pub fn open(&self, reference: &RegistryReference) -> Result<Oci> {
        let credentials = files().iter().find_map(|file| {
            // A file that is not there, or not ours to read, says nothing.
            credentials(&std::fs::read(file).ok()?, reference)
        });
        Oci::open(reference, self.plain_http, credentials)
    }
}

/// Copies what is missing, oldest first; returns the versions and how many bytes were sent for them.
pub async fn copy_missing(
    from: &Repository,
    to: &dyn Backend,
    head: Option<Version>,
    meter: &Meter,
) -> Result<(Vec<Version>, u64)> {
    let versions = from.versions_after(head).await?;
    if head.is_none() && versions.is_empty() {
        let message = "there is no version to copy yet";
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let mut copied_bytes = 0;
    for version in &versions {
        meter.stage(&format!("version {version}"));
        copied_bytes += from.copy_version(*version, to, meter).await?.copied_bytes;
    }
    Ok((versions, copied_bytes))
}

/// Where tools keep who somebody is to registries, the most particular first.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let docker =
        variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    let user = rustix::process::getuid().as_raw();
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        Some(format!("/run/containers/{user}/auth.json").into()),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Finds who we are at a place: what is said of it, else of what it is below, else of its registry.
fn credentials(file: &[u8], reference: &RegistryReference) -> Option<Credentials> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: BTreeMap<String, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        auth: Option<String>,
    }
    let file: File = serde_json::from_slice(file).ok()?;
    let mut place = format!("{}/{}", reference.host, reference.path);
    loop {
        if let Some(auth) = file.auths.get(&place).and_then(|entry| entry.auth.as_ref()) {
            return Some(Credentials::from_base64(auth));
        }
        place.truncate(place.rfind('/')?);
    }
}

#[cfg(test)]
mod tests {
    use super::credentials;

    #[test]
    fn the_most_particular_entry_says_who_we_are() {
        let file = br#"{"auths":{"a.example":{"auth":"one"},"a.example/x":{"auth":"two"},
            "b.example":{}},"credsStore":"other"}"#;
        for (place, expected) in [
            ("a.example/y", true),
            ("a.example/x/deep", true),
            ("b.example/x", false),
            ("c.example/x", false),
        ] {
            let found = credentials(file, &place.parse().unwrap());
            assert_eq!(found.is_some(), expected, "{place}");
        }
        assert!(credentials(b"no json", &"a.example/x".parse().unwrap()).is_none());
    }
}
