//! `collective exec`: runs a command inside an appliance, through its guest agent, and ends as that command did.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use collective_api::host::{ExecReply, ExecRequest};
use collective_model::{ApplianceName, Error, ErrorKind, IoResultExt as _, Result, ResultExt as _};
use serde::Serialize;

use crate::context::Context;
use crate::text::Span;
use crate::wait;

/// Bytes of input, at most: it crosses the guest agent's serial line in one piece.
const INPUT_BYTES: u64 = 8 << 20;

/// Run a command inside a running appliance
///
/// The command runs as root through the guest agent, without a terminal. Its output comes when it has ended, and its exit
/// code is the exit code of `exec`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective exec debian -- ls -l /home\n  \
    collective exec debian --input notes.txt -- tee /home/notes.txt")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// What the command reads from its standard input (`-`: our own)
    #[arg(long, value_name = "FILE")]
    input: Option<std::path::PathBuf>,
    /// How long to wait for its end; the command goes on after that
    #[arg(long, value_name = "TIME", default_value = "10min")]
    limit: Span,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What a program reads: text where it is text, so that it need not decode.
#[derive(Serialize)]
struct Reply {
    exit_code: i32,
    stdout: String,
    stderr: String,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let input = arguments.input.as_deref().map(read_input).transpose()?;
    let request = ExecRequest {
        command: arguments.command,
        input,
        limit_s: Some(seconds(arguments.limit.0)?),
    };
    let Some(reply) = wait::or_interrupt(client.exec(&arguments.appliance, &request)).await? else {
        context.output.note("The command goes on inside the appliance.");
        return Ok(wait::INTERRUPTED);
    };
    show(context, &reply)?;
    Ok(exit_code(reply.exit_code))
}

fn read_input(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let shown = path.display();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(INPUT_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(INPUT_BYTES + 1).read_to_end(&mut bytes))
    }
    .or_io(|| format!("cannot read the input from `{shown}`"))?;
    if bytes.len() as u64 > INPUT_BYTES {
        let message = format!("the input from `{shown}` is larger than 8 MiB");
        return Err(Error::new(ErrorKind::Invalid, message)
            .with_hint("put large files on a web server and fetch them from inside"));
    }
    Ok(STANDARD.encode(bytes))
}

fn seconds(limit: Duration) -> Result<u32> {
    u32::try_from(limit.as_secs())
        .or_error(ErrorKind::Invalid, || format!("a limit of {limit:?} is too long"))
}

fn show(context: &Context, reply: &ExecReply) -> Result<()> {
    let decode = |text: &str| {
        STANDARD.decode(text).or_error(ErrorKind::Internal, || {
            "the host sent output of the command that cannot be read".to_owned()
        })
    };
    let (stdout, stderr) = (decode(&reply.stdout)?, decode(&reply.stderr)?);
    if context.output.is_json() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let reply =
            Reply { exit_code: reply.exit_code, stdout: text(&stdout), stderr: text(&stderr) };
        context.output.object("exec", &reply);
    } else {
        context.output.bytes(&stdout);
        // stderr may be closed; the exit code still says how the command ended.
        let _ = std::io::stderr().lock().write_all(&stderr);
    }
    Ok(())
}

/// What does not fit an exit code must not look like success.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn a_code_that_does_not_fit_is_no_success() {
        assert_eq!([0, 3, 255, 256, -1].map(exit_code), [0, 3, 255, 255, 255]);
    }
}
