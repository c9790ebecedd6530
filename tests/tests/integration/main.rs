//! The integration tests: real PostgreSQL, real Redis, real processes, real kills. Run them with `bin/test`.

mod adopt;
mod api;
mod audit;
mod batches;
mod bootstrap;
mod causes;
mod chaos;
mod consumer;
mod convergence;
mod dead_letters;
mod doctor;
mod documentation;
mod fuzz;
mod fuzz_garbage;
mod fuzz_requests;
mod kills;
mod launcher;
mod limits;
mod loss;
mod poison;
mod reaper;
mod restore;
mod seed;
mod settings;
mod stalls;
mod streamer;
