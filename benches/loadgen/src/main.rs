//! Neutral load for the benchmarks: senders, sinks, echo servers and clients that work with any UDP
//! program on loopback, and bare system call loops, which show the upper limit for any program.
//!
//! Every command is pinned to `--core`, ends after `--seconds` or when its standard input is
//! closed, whichever comes first, and prints its result as one line of JSON. A command that binds a
//! socket first prints a line with its port. With `--counter FD` it keeps the number of datagrams
//! that it has sent, received or echoed as a 64-bit integer at the start of that file.

mod args;
#[cfg(feature = "dtls")]
mod dtls;
mod echo;
mod histogram;
mod json;
mod load;
mod pingpong;
mod receive;
mod ring;
mod send;
mod sys;

use std::process::ExitCode;

use args::{Args, Result};

const USAGE: &str = "\
usage: loadgen COMMAND --core N --seconds S [--counter FD] [--size BYTES] ...

  blast      --port P [--gso] [--rate N] [--from HOST]
                                                 send to one port, connected
  peers      --port P --peers N [--rate N]       send single datagrams from many sockets in turn
  sink       [--rcvbuf BYTES]                    drain a port of every local address
  echo       [--offload] [--spin] [--rcvbuf BYTES]
                                                 send back what comes
  load       --port P [--clients N] [--window N] [--gso] [--sleep] [--warmup S] [--timeout S]
                                                 keep requests in flight, time the replies
  pingpong   --port P [--spin] [--warmup S]      one request at a time
  limit-recv [--gro | --single] [--rcvbuf BYTES [--force]]
                                                 recvmmsg, or recvfrom, and nothing else
  limit-send --port P --mode sendto|sendmmsg|gso [--peers N]
                                                 the system call and nothing else

With the feature `dtls`:

  dtls-echo       --certificate FILE [--rcvbuf BYTES]
                                                 send back the data of every record
  dtls-load       --port P [--clients N] [--window N] [--sleep] [--timeout S]
                                                 keep requests of many sessions in flight
  dtls-handshakes --port P [--window N]          handshakes and nothing else
  dtls-pingpong   --port P                       one request at a time
";

fn main() -> ExitCode {
    match run() {
        Ok(result) => {
            result.print();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("loadgen: {error}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<json::Line> {
    let mut args = Args::parse(std::env::args().skip(1))?;
    match args.command() {
        "blast" => send::blast(&mut args),
        "peers" => send::peers(&mut args),
        "sink" => receive::sink(&mut args),
        "echo" => echo::echo(&mut args),
        "load" => load::load(&mut args),
        "pingpong" => pingpong::pingpong(&mut args),
        "limit-recv" => receive::limit(&mut args),
        "limit-send" => send::limit(&mut args),
        #[cfg(feature = "dtls")]
        "dtls-echo" => dtls::echo(&mut args),
        #[cfg(feature = "dtls")]
        "dtls-load" => dtls::load(&mut args),
        #[cfg(feature = "dtls")]
        "dtls-handshakes" => dtls::handshakes(&mut args),
        #[cfg(feature = "dtls")]
        "dtls-pingpong" => dtls::pingpong(&mut args),
        other => Err(format!("no command {other:?}").into()),
    }
}
