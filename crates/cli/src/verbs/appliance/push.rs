//! `collective appliance push`: an appliance's versions into a registry of containers.

use std::sync::Arc;

use clap::Args;
use collective_api::ServerClient;
use collective_model::{ApplianceName, Error, ErrorKind, Result};
use collective_repository::Repository;
use collective_repository::backend::{Backend, RegistryReference};

use super::registry::{Copied, RegistryArguments, copy_missing};
use super::show;
use crate::context::Context;
use crate::wait;

/// Copy an appliance into a registry of containers
///
/// Every version becomes a tag of its number; `latest` is the newest. What the registry has already is not sent again. The
/// registry need not be trusted: what is pulled from there is checked against the publisher's signature. Who pushes to a
/// place has to be the only one who does.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  collective appliance push debian registry.example/appliances/debian\n  \
    skopeo login registry.example    # if it wants to know who asks"
)]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Where to: the registry, and the path in it
    #[arg(value_name = "REGISTRY/PATH")]
    place: RegistryReference,
    #[command(flatten)]
    registry: RegistryArguments,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<u8> {
    let Arguments { appliance: name, place, registry } = arguments;
    if place.version.is_some() {
        let message = format!("`{place}` names one version, and all are pushed");
        return Err(Error::new(ErrorKind::Invalid, message).with_hint("leave out the `:`"));
    }
    let meter = context.output.meter(&format!("push {name}"));
    let work = async {
        let from = show::open(server, &server.appliance(&name).await?).await?;
        let to = Arc::new(registry.open(&place)?);
        // What is there must be this very appliance.
        Repository::create(to.clone(), from.descriptor().clone(), None).await?;
        let (versions, copied_bytes) = copy_missing(&from, &*to, to.head().await?, &meter).await?;
        let publisher = from.descriptor().publisher.to_string();
        let (appliance, registry) = (name.to_string(), place.to_string());
        Ok(Copied { appliance, registry, versions, copied_bytes, publisher })
    };
    let Some(copied) = wait::or_interrupt(work).await? else {
        meter.note("Stopped; another push goes on from here.");
        return Ok(wait::INTERRUPTED);
    };
    drop(meter);
    let there = copied.registry.clone();
    context.output.say("pushed", &copied, || copied.text(&format!("is in {there}"), &there));
    Ok(0)
}
