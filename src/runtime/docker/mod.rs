//! docker stub
