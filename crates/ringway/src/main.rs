//! `ringway`: a vhost-user server that gives virtual machines their network, their disks and smaller devices.
//!
//! The program is thin: [`args`] is the command line, [`net`] turns it into ports and workers and [`blk`] into disks;
//! [`rng`], [`console`] and [`balloon`] are served by [`simple`]; [`serve`] is the main thread's loop for either, [`upgrade`] hands all of it to a newer program, [`capture`] has it copy
//! frames to files, [`ask`] is how a command speaks to a running server, [`check`] examines other back-ends. What moves
//! frames is the `net` crate, what moves blocks the `block` crate; what speaks to front-ends is `vhost`.

mod args;
mod ask;
mod balloon;
mod blk;
mod capture;
mod check;
mod console;
mod inherit;
mod net;
mod notify;
mod place;
mod rng;
mod serve;
mod simple;
mod upgrade;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = args::with_command(std::env::args_os());
    // By QEMU's conventions for back-end programs all other arguments are ignored then, wrong ones too.
    if args.iter().any(|arg| arg == args::PRINT_CAPABILITIES) {
        print!("{}", args::capabilities(args));
        return ExitCode::SUCCESS;
    }
    let args = args::Args::parse_from(args);
    let filter = EnvFilter::try_from_env("RINGWAY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    raise_file_limit();
    let result = match args.command {
        args::Command::Check(args) => return check::check(&args),
        args::Command::Switch(args) => net::switch(&args),
        args::Command::Net(args) => net::net(&args),
        args::Command::Blk(args) => blk::blk(&args),
        args::Command::Rng(args) => rng::rng(&args),
        args::Command::Console(args) => console::console(&args),
        args::Command::Balloon(args) => balloon::balloon(&args),
        args::Command::BalloonTarget(args) => balloon::set_target(&args),
        args::Command::Capture(args) => capture::command::run(&args),
        args::Command::Resize(args) => blk::resize::run(&args),
        args::Command::Upgrade(args) => upgrade::command::run(args.pid),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A front-end may share 509 regions, each of which is a file: as many files as this process is allowed at all. The
/// lower limit that processes start with is for those that use `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!("the limit of open files stays: {error}");
    }
}
