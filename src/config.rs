#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    Correct,
    Report,
}
