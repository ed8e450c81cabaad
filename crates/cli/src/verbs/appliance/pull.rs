//! `collective appliance pull`: an appliance from a registry of containers onto the server.

use std::sync::Arc;

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::{Appliance, CreateAppliance};
use collective_model::{ApplianceName, Epoch, Error, ErrorKind, Result};
use collective_repository::backend::{Backend, Http, ObjectName, Oci, RegistryReference};
use collective_repository::{Descriptor, Kind, PublisherKey, Repository, Trust};

use super::registry::{Copied, RegistryArguments, copy_missing};
use crate::context::Context;
use crate::progress::Meter;
use crate::wait;

/// Copy an appliance from a registry of containers onto the server
///
/// Makes the appliance if the server has none of the name; else it has to be the same one, and gets the versions that it lacks.
/// Everything is checked against the publisher's signature; whose key that is only you can know: `--publisher` says which it
/// must be. Nobody may start it yet: see `collective grant add`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  collective appliance pull registry.example/appliances/debian debian\n  \
    collective grant add debian staff"
)]
pub struct Arguments {
    /// Where from: the registry, and the path in it; with `:NUMBER` behind it, no version that is newer
    #[arg(value_name = "REGISTRY/PATH")]
    place: RegistryReference,
    /// How the server calls it
    appliance: ApplianceName,
    /// The key that has to have signed it, as `collective appliance push` says it
    #[arg(long, value_name = "KEY")]
    publisher: Option<PublisherKey>,
    #[command(flatten)]
    registry: RegistryArguments,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<u8> {
    let name = arguments.appliance.clone();
    let meter = context.output.meter(&format!("pull {name}"));
    let work = pull(&arguments, server, &meter);
    let Some(copied) = wait::or_interrupt(work).await? else {
        meter.note("Stopped; another pull goes on from here.");
        return Ok(wait::INTERRUPTED);
    };
    drop(meter);
    context.output.say("pulled", &copied, || copied.text("is on the server", "the server"));
    Ok(0)
}

async fn pull(arguments: &Arguments, server: &ServerClient, meter: &Meter) -> Result<Copied> {
    let Arguments { place, appliance: name, publisher, registry } = arguments;
    let from = registry.open(place)?;
    let descriptor = descriptor(&from, place, *publisher).await?;
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
    let from = Repository::open(Arc::new(from), trust).await?;
    // The newest has to be right before the server is told of anything.
    let newest = from.head().await?.ok_or_else(|| nothing(place))?;
    from.version(newest).await?;
    let appliance = appliance(name, &descriptor, server).await?;
    let url = server.repository_url(descriptor.id);
    let to = Http::new(server.http().clone(), &url, Epoch::default());
    let (versions, copied_bytes) = copy_missing(&from, &to, appliance.head, meter).await?;
    Ok(Copied {
        appliance: name.to_string(),
        registry: place.to_string(),
        versions,
        copied_bytes,
        publisher: descriptor.publisher.to_string(),
    })
}

/// Reads what is there, and whether it is what was asked for.
async fn descriptor(
    from: &Oci,
    place: &RegistryReference,
    publisher: Option<PublisherKey>,
) -> Result<Descriptor> {
    let bytes = match from.read(&ObjectName::Descriptor, None).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(nothing(place)),
        read => read?,
    };
    let descriptor = Descriptor::decode(&bytes)?;
    if descriptor.kind != Kind::Appliance || descriptor.encrypted {
        let message = format!("what is in {place} is no appliance");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    if publisher.is_some_and(|publisher| publisher != descriptor.publisher) {
        let signed_by = descriptor.publisher;
        let message = format!("{place} is another publisher's: it is signed by {signed_by}");
        return Err(Error::new(ErrorKind::Denied, message));
    }
    Ok(descriptor)
}

fn nothing(place: &RegistryReference) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no appliance in {place}"))
}

/// Finds the appliance, or makes it.
async fn appliance(
    name: &ApplianceName,
    descriptor: &Descriptor,
    server: &ServerClient,
) -> Result<Appliance> {
    match server.appliance(name).await {
        Ok(appliance) if appliance.repository == *descriptor => Ok(appliance),
        Ok(_) => {
            let message = format!("the server's `{name}` is another appliance");
            Err(Error::new(ErrorKind::Conflict, message).with_hint("pull it under another name"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let repository = descriptor.clone();
            server.create_appliance(&CreateAppliance { name: name.clone(), repository }).await
        }
        Err(error) => Err(error),
    }
}
