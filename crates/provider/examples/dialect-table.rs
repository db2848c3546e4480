//! Prints the generated part of `docs/DIALECTS.md`.

fn main() {
    print!("{}", provider::dialect::mapping_table());
}
