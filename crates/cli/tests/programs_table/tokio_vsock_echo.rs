//! An echo with the crate `tokio-vsock`: `client CID PORT` sends its input and prints what comes back; `server PORT`.

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::io::{self, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

    #[tokio::main(flavor = "current_thread")]
    pub async fn main() -> io::Result<()> {
        let words: Vec<String> = env::args().skip(1).collect();
        let number = |index: usize| words[index].parse::<u32>().map_err(io::Error::other);
        match words[0].as_str() {
            "client" => {
                let stream = VsockStream::connect(VsockAddr::new(number(1)?, number(2)?)).await?;
                let (mut reader, mut writer) = stream.into_split();
                let mut input = Vec::new();
                io::Read::read_to_end(&mut io::stdin(), &mut input)?;
                let sending = tokio::spawn(async move {
                    writer.write_all(&input).await?;
                    writer.shutdown().await
                });
                let mut got = Vec::new();
                reader.read_to_end(&mut got).await?;
                io::stdout().write_all(&got)?;
                sending.await?
            }
            _ => {
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, number(1)?))?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    tokio::spawn(async move {
                        if let Err(error) = echo(stream).await {
                            eprintln!("a connection failed: {error}");
                        }
                    });
                }
            }
        }
    }

    async fn echo(stream: VsockStream) -> io::Result<()> {
        let (mut reader, mut writer) = stream.into_split();
        tokio::io::copy(&mut reader, &mut writer).await?;
        writer.shutdown().await
    }
}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
