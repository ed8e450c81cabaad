//! Serves a raw file at a socket until it is killed: our export alone, for measurements (`benches/transport.sh`).

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use collective_disk::{Export, RawFile};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (file, socket) = arguments.next().zip(arguments.next()).context("serve <file> <socket>")?;
    let failed = |error: collective_model::Error| anyhow::anyhow!(error.chain());
    let export = Export::bind(&socket).map_err(failed)?;
    export
        .add("disk", Arc::new(RawFile::open(Path::new(&file)).map_err(failed)?))
        .map_err(failed)?;
    std::future::pending().await
}
