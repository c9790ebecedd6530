//! Tools for whoever runs the log. Each is a binary that looks once, says what it found or did, and exits; none is needed
//! while all is well.

pub mod adopt;
pub mod audit;
pub mod dead_letters;
pub mod doctor;
