//! Peers that tests play by hand: a worker that says whatever a test wants, honest or not, over a connection from any address of
//! this machine; peers that mean harm; and the small data set that they train on.

mod attack;
mod coordinator;
mod data;
mod worker;

pub use attack::{Attack, Harm};
pub use coordinator::{fence, welcome};
pub use data::{N_TRAIN, data_set, task, task_of, write_data_set};
pub use worker::{
    GradientRoute, N_PARAMS, Route, WAIT_MAX, Worker, join, name_alone, next, open_memory, open_session, try_open,
    work, work_honestly, zeros,
};
