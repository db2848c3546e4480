//! The `providerd` program: everything is in the library.

fn main() -> std::process::ExitCode {
    providerd::cli::main()
}
