//! scripted stub
