//! stub
/// stub
#[derive(Debug)]
pub struct Jsonl;
/// stub
#[derive(Debug)]
pub struct Durability;
