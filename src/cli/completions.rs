//! `completions`: what a shell completes: commands, options, and in bash and fish the names of declared providers.

use std::io::Write as _;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{
    Cli, Global,
    context::settings,
    output::{self, Exit},
};
use crate::loader::Loader;

/// Commands whose arguments are names of providers.
const NAMED: &str = "check status models suspend resume";

const BASH: &str = r#"
_providerd_named() {
    _providerd "$@"
    local word=${COMP_WORDS[COMP_CWORD]} command
    for command in NAMED; do
        if [[ ${COMP_WORDS[1]-} == "$command" && $word != -* ]]; then
            local IFS=$'\n'
            COMPREPLY+=($(compgen -W "$(providerd names 2>/dev/null)" -- "$word"))
        fi
    done
}
complete -F _providerd_named -o bashdefault -o default providerd
"#;

const FISH: &str = r#"
complete -c providerd -n "__fish_seen_subcommand_from NAMED" -f -a "(providerd names 2>/dev/null)"
"#;

/// Prints a shell's completion script.
pub(super) fn completions(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "providerd", &mut script);
    let mut text = String::from_utf8(script)?;
    match shell {
        Shell::Bash => text += &BASH.replace("NAMED", NAMED),
        Shell::Fish => text += &FISH.replace("NAMED", NAMED),
        _ => {}
    }
    // As it was made: what shells read is not for terminals.
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// Prints the names of declared providers, one a line, for completion scripts.
pub(super) fn names(global: &Global) -> anyhow::Result<Exit> {
    let settings = settings(global)?;
    let build = Loader::new(settings.manifests.path).load(true);
    let names = build.catalog.providers.keys().filter(|name| !name.contains('\n'));
    output::text(&names.map(|name| format!("{name}\n")).collect::<String>())
}
