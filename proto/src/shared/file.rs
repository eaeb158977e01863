//! Memory files whose size is sealed: created by one process, opened by others on its machine. Linux only; on other systems
//! nothing is shared.

use std::fs::File;
use std::io;

use super::OpenError;

/// What those who open a file may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadAndWrite,
    Read,
}

/// A file of so many zeros; only who has it can make others find it.
#[cfg(target_os = "linux")]
pub(super) fn create(n_bytes: usize) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};

    let file = File::from(memfd_create("telar", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(n_bytes as u64)?;
    Ok(file)
}

/// Makes the size final, and, if others may only read, what they can do with it. What is mapped already stays writable.
#[cfg(target_os = "linux")]
pub(super) fn seal(file: &File, access: Access) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};

    let size = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let seals = match access {
        Access::ReadAndWrite => size,
        Access::Read => size | SealFlags::FUTURE_WRITE,
    };
    Ok(fcntl_add_seals(file, seals)?)
}

/// Opens a file of another process by its number there. It has to be one of these, of so many bytes.
#[cfg(target_os = "linux")]
pub(super) fn open(process: u32, descriptor: u32, n_bytes: usize, access: Access) -> Result<File, OpenError> {
    use rustix::fs::{SealFlags, fcntl_get_seals};

    let path = format!("/proc/{process}/fd/{descriptor}");
    let error = |source| OpenError::Open { path: path.clone(), source };
    // Checked before it is opened: in another PID namespace this may be a device whose `open` blocks.
    let found = std::fs::metadata(&path).map_err(error)?;
    if !found.is_file() || found.len() != n_bytes as u64 {
        return Err(OpenError::Other { path, expected: n_bytes, found: found.len() });
    }
    let file = File::options().read(true).write(access == Access::ReadAndWrite).open(&path).map_err(error)?;
    // Without the seals, a truncation would SIGBUS every process that has it mapped.
    let is_sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK | SealFlags::GROW));
    if is_sealed { Ok(file) } else { Err(OpenError::NotSealed { path }) }
}

/// Sixteen unpredictable bytes.
#[cfg(target_os = "linux")]
pub(super) fn token() -> io::Result<[u8; 16]> {
    use rustix::rand::{GetRandomFlags, getrandom};

    let mut token = [0; 16];
    // So few bytes come whole.
    getrandom(&mut token, GetRandomFlags::empty())?;
    Ok(token)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn create(_n_bytes: usize) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn seal(_file: &File, _access: Access) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open(process: u32, descriptor: u32, _n_bytes: usize, _access: Access) -> Result<File, OpenError> {
    let path = format!("/proc/{process}/fd/{descriptor}");
    Err(OpenError::Open { path, source: io::ErrorKind::Unsupported.into() })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn token() -> io::Result<[u8; 16]> {
    Err(io::ErrorKind::Unsupported.into())
}
