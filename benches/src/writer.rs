//! A guest's disk without a guest: writes to an export over the network block device protocol, one at a time.
//!
//! Only what a measure needs: the oldest way to name an export, writes and flushes, each waited for.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// "NBDMAGIC", "IHAVEOPT", and what requests and simple replies begin with.
const GREETING: [u8; 16] = *b"NBDMAGICIHAVEOPT";
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// The option that names an export and begins at once, and the flags of the handshake.
const EXPORT_NAME: u32 = 1;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
/// Commands.
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

/// A connection to an export.
#[derive(Debug)]
pub struct Writer(UnixStream);

impl Writer {
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        ensure!(greeting.starts_with(&GREETING), "{} is no export", socket.display());
        let mut hello = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(EXPORT_NAME.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        // The size and the flags of the export.
        stream.read_exact(&mut [0; 10])?;
        Ok(Self(stream))
    }

    /// Writes, and waits until the server has it.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.request(WRITE, offset, data.len() as u32)?;
        self.0.write_all(data)?;
        self.reply()
    }

    pub fn flush(&mut self) -> Result<()> {
        self.request(FLUSH, 0, 0)?;
        self.reply()
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> Result<()> {
        let mut request = REQUEST.to_be_bytes().to_vec();
        request.extend(u32::from(command).to_be_bytes());
        request.extend([0; 8]);
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        Ok(self.0.write_all(&request)?)
    }

    fn reply(&mut self) -> Result<()> {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply)?;
        let expected = [REPLY.to_be_bytes(), [0; 4]].concat();
        ensure!(reply.starts_with(&expected), "the export refuses a write");
        Ok(())
    }
}
