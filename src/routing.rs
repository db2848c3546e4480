//! stub
use crate::model::*;
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DesiredRule {
    pub model: Box<str>,
    pub cell: Cell,
    pub priority: Option<i32>,
    pub weight: Option<i32>,
    pub enabled: Option<bool>,
    pub origin: Origin,
}
