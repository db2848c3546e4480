//! What is logged, where to, and in which form. `docs/LOGGING.md` lists fields and levels.
//!
//! Job: set up the one subscriber of the process, on standard error. Not its job: what is said. Invariants:
//! an event is one line (or one journal entry); libraries that could log a request's headers are never
//! heard below `info`, whatever the filter asks for.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    sync::OnceLock,
};

use tracing::{Event, Level, Metadata, Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::filter_fn,
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer, debug_fn},
        layer,
    },
    layer::SubscriberExt as _,
    registry::{LookupSpan, Registry},
    reload,
    util::SubscriberInitExt as _,
};

use provider::shown;

use crate::config::{Log, LogFormat};

/// Libraries whose finer levels print connections, headers or bytes, where keys travel.
const TALKATIVE: [&str; 8] =
    ["h2", "hyper", "hyper_util", "reqwest", "rustls", "tower_http", "tungstenite", "axum"];

/// Added to a bare level, so that `debug` means this program and not every library below it.
const LIBRARIES: &str = "sqlx=warn,notify=warn,tokio_cron_scheduler=warn";

/// The filter in use, for [`set_level`].
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error(
        "{origin} is no log filter: {message}\n  hint: use a level (error, warn, info, debug, trace) or \
         directives such as info,providerd::health=debug"
    )]
    Filter { origin: &'static str, message: String },
    #[error("logging was already set up")]
    AlreadySet,
}

/// How a line looks, once `auto` is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// For people; with the time.
    Human {
        colours: bool,
    },
    /// For the journal, which has its own time: `<6>` and the line.
    Journal,
    Json,
}

/// Sets up logging for the process.
///
/// # Errors
/// [`LoggingError::Filter`] when `log.level` or `RUST_LOG` is not understood.
pub fn init(settings: &Log) -> Result<(), LoggingError> {
    let rust_log = std::env::var("RUST_LOG").ok();
    let filter = filter(&settings.level, rust_log.as_deref())?;
    let terminal = io::stderr().is_terminal();
    let journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref());
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());

    let output = match form(settings.format, terminal, journal, no_color) {
        Form::Human { colours } => {
            layer().with_writer(io::stderr).with_ansi(colours).fmt_fields(debug_fn(field)).boxed()
        }
        Form::Journal => layer()
            .with_writer(io::stderr)
            .with_ansi(false)
            .fmt_fields(debug_fn(field))
            .event_format(Prefixed(tracing_subscriber::fmt::format().without_time().with_level(false)))
            .boxed(),
        Form::Json => layer()
            .with_writer(io::stderr)
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter);
    tracing_subscriber::registry()
        .with(output.with_filter(filter_fn(is_safe)).with_filter(filter))
        .try_init()
        .map_err(|_| LoggingError::AlreadySet)?;
    // Set once: a second `init` has failed above.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Whether `RUST_LOG` decides, whatever the settings say.
pub fn is_overridden() -> bool {
    std::env::var("RUST_LOG").is_ok_and(|text| !text.trim().is_empty())
}

/// Changes the level of a running process; nothing, where [`is_overridden`].
///
/// # Errors
/// [`LoggingError::Filter`]; the level is as before.
pub fn set_level(level: &str) -> Result<(), LoggingError> {
    let wanted = filter(level, std::env::var("RUST_LOG").ok().as_deref())?;
    let Some(handle) = FILTER.get() else { return Ok(()) };
    handle
        .reload(wanted)
        .map_err(|error| LoggingError::Filter { origin: "log.level", message: error.to_string() })
}

fn form(format: LogFormat, terminal: bool, journal: bool, no_color: bool) -> Form {
    match format {
        LogFormat::Json => Form::Json,
        LogFormat::Auto if journal => Form::Journal,
        LogFormat::Auto if !terminal => Form::Json,
        LogFormat::Auto | LogFormat::Human => Form::Human { colours: terminal && !no_color },
    }
}

fn filter(level: &str, rust_log: Option<&str>) -> Result<EnvFilter, LoggingError> {
    let (text, origin) = match rust_log.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => (text, "RUST_LOG"),
        None => (level.trim(), "log.level"),
    };
    let directives = match text.parse::<Level>() {
        // Warnings of libraries are wanted unless the level asks for less than warnings.
        Ok(bare) if bare >= Level::WARN => format!("{bare},{LIBRARIES}"),
        _ => text.to_owned(),
    };
    EnvFilter::builder()
        .parse(&directives)
        .map_err(|error| LoggingError::Filter { origin, message: error.to_string() })
}

fn is_safe(metadata: &Metadata<'_>) -> bool {
    is_safe_target(metadata.target(), *metadata.level())
}

fn is_safe_target(target: &str, level: Level) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    level <= Level::INFO || !TALKATIVE.contains(&library)
}

/// Does standard error go to the journal? systemd names the stream by device and inode, since the variable
/// is inherited by children whose standard error goes elsewhere.
fn is_journal(journal_stream: Option<&str>) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|text| text.split_once(':')) else { return false };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// One field for people. Its words may be another's: none of them ends the line or moves the cursor.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}").replace("\nhint: ", "; hint: ");
    let text = shown::one_line(&text);
    match field.name() {
        "message" => write!(writer, "{text}"),
        name if writer.has_ansi_escapes() => write!(writer, " \x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{text}"),
        name => write!(writer, " {name}={text}"),
    }
}

/// Puts the priority in front of every line, as `sd-daemon(3)` defines it.
struct Prefixed<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prefixed<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        text.trim_end().lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// The syslog priority of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_form_follows_the_output() {
        let check = |format, terminal, journal, no_color, expected| {
            assert_eq!(form(format, terminal, journal, no_color), expected);
        };
        check(LogFormat::Auto, true, false, false, Form::Human { colours: true });
        check(LogFormat::Auto, true, false, true, Form::Human { colours: false });
        check(LogFormat::Auto, false, false, false, Form::Json);
        check(LogFormat::Auto, false, true, false, Form::Journal);
        check(LogFormat::Human, false, true, false, Form::Human { colours: false });
        check(LogFormat::Json, true, true, false, Form::Json);
    }

    #[test]
    fn filters_are_read_and_refused() {
        let check = |level: &str, rust_log: Option<&str>, expected: &str| {
            let text = match filter(level, rust_log) {
                Ok(filter) => filter.to_string(),
                Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
            };
            assert!(text.contains(expected), "{text} should contain {expected}");
        };
        check("info", None, "sqlx=warn");
        check("info", Some(""), "info");
        check("info", Some("debug"), "debug");
        check("error", None, "error");
        check("info,providerd::health=debug", None, "providerd::health=debug");
        check("info,,=x=y", None, "log.level is no log filter");
        check("info", Some("a=b=c"), "RUST_LOG is no log filter");
    }

    #[test]
    fn libraries_that_see_keys_stay_quiet() {
        let check = |target: &str, level: Level, expected: bool| {
            assert_eq!(is_safe_target(target, level), expected, "{target} {level}");
        };
        check("hyper::proto::h1", Level::TRACE, false);
        check("h2::codec", Level::DEBUG, false);
        check("reqwest::connect", Level::WARN, true);
        check("providerd::health", Level::TRACE, true);
        check("hyperlink", Level::TRACE, true);
    }

    #[test]
    fn the_journal_is_known_by_its_stream() {
        assert!(!is_journal(None));
        assert!(!is_journal(Some("")));
        assert!(!is_journal(Some("1:notanumber")));
        assert!(!is_journal(Some("0:0")));
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_for_the_journal_has_a_priority() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let output = layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Prefixed(tracing_subscriber::fmt::format().without_time().with_level(false)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(output), || {
            tracing::error!(provider = "a", "first\nsecond");
            tracing::info!("third");
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let prefixes: Vec<&str> = text.lines().map(|line| &line[..3]).collect();
        assert_eq!(prefixes, ["<3>", "<3>", "<6>"], "{text}");
        assert!(text.contains("provider=\"a\""), "{text}");
    }
}
