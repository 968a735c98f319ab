//! `hvsock connections`: lists connections and closes them.

use anyhow::Result;
use clap::{Args, Subcommand};
use hvsock_control::{ConnectionEnd, ConnectionState};

use crate::context::Context;
use crate::os::linux::format;
use crate::output::{self, Json};
use crate::table::Columns;

/// List connections, or close one
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Connections {
    #[command(flatten)]
    json: Json,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Close(Close),
}

/// Close a connection, so that both ends see a reset
#[derive(Debug, Args)]
struct Close {
    /// The connection's id
    id: u64,
}

impl Connections {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Some(Command::Close(close)) => {
                let gone = context.client()?.close_connection(close.id)?;
                let service = format::service(gone.service, gone.service_name.as_ref());
                context.note(&format!(
                    "connection {} of `{service}` is closed after {}",
                    gone.id,
                    format::traffic(gone.bytes_sent, gone.bytes_received)
                ));
                Ok(())
            }
            None => list(context, self.json),
        }
    }
}

fn list(context: &Context, json: Json) -> Result<()> {
    let connections = context.client()?.connections()?;
    if json.json {
        return output::json(&connections);
    }
    let headings = [
        "id",
        "service",
        "from",
        "to",
        "state",
        "transport",
        "sent",
        "received",
        "age",
    ];
    let mut table = Columns::new(&headings, "no connections").right(&[0, 6, 7, 8]);
    for connection in connections {
        table.row([
            connection.id.to_string(),
            format::service(connection.service, connection.service_name.as_ref()),
            end(&connection.from),
            end(&connection.to),
            state(connection.state).to_owned(),
            match connection.arena {
                Some(arena) => format!("{} {arena}", connection.transport),
                None => connection.transport,
            },
            format::counted(connection.bytes_sent),
            format::counted(connection.bytes_received),
            format::age(connection.age_seconds),
        ]);
    }
    table.print()
}

/// One end of a connection: `web (pid 4711, alice)`, or `web (guest)` for a virtual machine.
pub fn end(end: &ConnectionEnd) -> String {
    if end.guest {
        return format!("{} (guest)", end.partition);
    }
    let user = end
        .user
        .clone()
        .unwrap_or_else(|| format!("uid {}", end.uid));
    match end.pid {
        0 => format!("{} ({user})", end.partition),
        pid => format!("{} (pid {pid}, {user})", end.partition),
    }
}

/// A connection's state.
pub fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Waiting => "waiting",
        ConnectionState::Open => "open",
        ConnectionState::Suspended => "suspended",
    }
}
