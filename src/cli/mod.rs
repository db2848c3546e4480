//! The command line: one file per command, no logic that a library caller would miss.
//!
//! Exit codes everywhere: 0 done and as desired, 1 could not be done, 2 done but not as desired, 64 usage.

mod apply;
mod check;
mod completions;
mod context;
mod demo;
mod doctor;
mod events;
mod explain;
mod export;
mod gateway;
mod import;
mod key;
mod manual;
mod models;
mod output;
mod plan;
mod progress;
mod routes;
mod run;
mod status;
mod suspend;
mod token;
mod usage;
mod validate;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::backend::Access;

pub use self::output::Exit;

/// GitOps for LLM providers: TOML manifests, reconciled into PostgreSQL.
#[derive(Debug, Parser)]
#[command(
    name = "providerd",
    version = env!("BUILT_VERSION"),
    propagate_version = true,
    max_term_width = 110,
    after_long_help = manual::AFTER_HELP
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: CliCommand,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Settings file [default: /etc/providerd/providerd.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Directory of manifests [default: providers.d]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub manifests: Option<PathBuf>,
    /// PostgreSQL to keep in step [default: $DATABASE_URL, else an embedded one]
    #[arg(long, global = true, value_name = "URL", hide_env_values = true, help_heading = "Global options")]
    pub database_url: Option<String>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Table, help_heading = "Global options")]
    pub output: OutputFormat,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For programs; stable and documented.
    Json,
    /// Annotations of GitHub Actions (validate only).
    Github,
    /// Comma-separated values, with a header (usage only).
    Csv,
}

#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run the daemon: watch, reconcile, report
    Run,
    /// Run the gateway alone, on a database that a daemon reconciles
    Gateway,
    /// See everything work on made-up providers, without a real key; leaves nothing behind
    Demo(demo::DemoArgs),
    /// Check manifests offline and report every problem at once
    Validate(validate::Validate),
    /// Show what `run` would do, field by field
    Plan(plan::PlanArgs),
    /// Reconcile once, then exit
    Apply(apply::Apply),
    /// Show the resolved routes: power level × user tier → ordered models
    Routes(routes::RoutesArgs),
    /// Show every provider: synced, health, key, source
    Status(status::StatusArgs),
    /// Check providers and test their keys now; writes nothing
    Check(check::Check),
    /// List what a provider itself offers beside what is declared and stored
    Models(models::ModelsArgs),
    /// Write manifests for what the database already holds
    Import(import::Import),
    /// Print the manifests in another program's form
    Export(export::Export),
    /// Find out what is wrong, with the fix for each finding
    Doctor(doctor::Doctor),
    /// Show the audit trail
    Events(events::EventsArgs),
    /// Show tokens, cost and latency of what the gateway served
    Usage(usage::UsageArgs),
    /// Stop applying, to everything or to one provider; checks go on
    Suspend(suspend::SuspendArgs),
    /// Start applying again
    Resume(suspend::ResumeArgs),
    /// Make, seal, verify and rotate keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Show where the admin API's tokens stand, or make one
    Token(token::TokenArgs),
    /// Print the manifests' JSON Schema
    Schema,
    /// Print a shell's completion script
    Completions { shell: clap_complete::Shell },
    /// Print the names of declared providers, for completion scripts
    #[command(hide = true)]
    Names,
    /// Print the manual page, or write one for each command into a directory
    Man {
        /// Where to write them; printed to standard output without it
        directory: Option<PathBuf>,
    },
}

/// Parses the command line, runs the command and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = !error.use_stderr();
            // Nowhere is left to report a failure to print.
            let _ = error.print();
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(64) };
        }
    };
    // One TLS implementation for every client of the process; a second call finds the first one's choice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Keys pass through every command: no core dump, and no other process of this user, shall see its memory.
    if let Err(error) = crate::process::harden_process() {
        anstream::eprintln!("warning: {error}");
    }
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::print_error(&error);
            Exit::Failed.into()
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { global, command } = cli;
    match command {
        CliCommand::Schema => output::json(&catalog::manifest::json_schema()),
        CliCommand::Completions { shell } => completions::completions(shell),
        CliCommand::Names => completions::names(&global),
        CliCommand::Man { directory } => manual::man(directory),
        CliCommand::Token(args) => args.run(&global),
        CliCommand::Validate(args) => args.run(&global),
        CliCommand::Routes(args) => args.run(&global),
        CliCommand::Key(key::KeyCommand::Generate) => key::generate(global.output),
        CliCommand::Run => run::run(&global),
        CliCommand::Gateway => gateway::run(&global),
        CliCommand::Demo(args) => args.run(&global),
        CliCommand::Plan(args) => {
            context::block_on_reading(&global, Access::Look, |context| Box::pin(args.run(context)))
        }
        CliCommand::Apply(args) => {
            context::block_on_reading(&global, Access::Write, |context| Box::pin(args.run(context)))
        }
        CliCommand::Status(args) => {
            context::block_on(&global, Access::Look, |context| Box::pin(args.run(context)))
        }
        CliCommand::Events(args) => {
            context::block_on(&global, Access::Look, |context| Box::pin(args.run(context)))
        }
        CliCommand::Usage(args) => {
            let access = if args.writes() { Access::Write } else { Access::Look };
            context::block_on(&global, access, |context| Box::pin(args.run(context)))
        }
        CliCommand::Suspend(args) => {
            context::block_on(&global, Access::Write, |context| Box::pin(args.run(context)))
        }
        CliCommand::Resume(args) => {
            context::block_on(&global, Access::Write, |context| Box::pin(args.run(context)))
        }
        CliCommand::Check(args) => {
            context::block_on(&global, Access::Look, |context| Box::pin(args.run(context)))
        }
        CliCommand::Models(args) => {
            context::block_on(&global, Access::Look, |context| Box::pin(args.run(context)))
        }
        CliCommand::Import(import::Import { from: Some(import::ImportFrom::Litellm(args)), .. }) => {
            args.run(&global)
        }
        CliCommand::Export(args) => args.run(&global),
        CliCommand::Import(args) => {
            context::block_on(&global, Access::Write, |context| Box::pin(args.run(context)))
        }
        CliCommand::Doctor(args) => args.run(&global),
        CliCommand::Key(key) => key.run(&global),
    }
}
