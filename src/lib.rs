//! providerd: GitOps for LLM providers.
//!
//! Data flows one way: **texts → catalog → plan → transaction → snapshot**. Everything that decides is
//! pure (it takes values, the time included, and returns values); everything that touches the world is thin
//! and sits at the edge.

pub mod health;
pub mod model;
pub mod plan;
