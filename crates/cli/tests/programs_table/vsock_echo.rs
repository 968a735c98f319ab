//! An echo with the crate `vsock`: `client CID PORT` sends its input and prints what comes back; `server PORT`.

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::io::{self, Write};
    use std::net::Shutdown;
    use std::thread;

    use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

    pub fn main() -> io::Result<()> {
        let words: Vec<String> = env::args().skip(1).collect();
        let number = |index: usize| words[index].parse::<u32>().map_err(io::Error::other);
        match words[0].as_str() {
            "client" => {
                let mut stream = VsockStream::connect_with_cid_port(number(1)?, number(2)?)?;
                let mut writer = stream.try_clone()?;
                let sending = thread::spawn(move || {
                    io::copy(&mut io::stdin(), &mut writer)?;
                    writer.shutdown(Shutdown::Write)
                });
                io::copy(&mut stream, &mut io::stdout())?;
                io::stdout().flush()?;
                sending
                    .join()
                    .map_err(|_| io::Error::other("the thread ended"))?
            }
            _ => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, number(1)?)?;
                for stream in listener.incoming() {
                    let stream = stream?;
                    thread::spawn(move || io::copy(&mut &stream, &mut &stream));
                }
                Ok(())
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
