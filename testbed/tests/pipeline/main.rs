//! The whole pipeline on real services: what clients see, and the state after a fault.
//!
//! One binary, so that the tests share services where they may. Tests that kill or freeze a service start their own.

mod api;
mod aws;
mod bad_input;
mod consumer_faults;
mod contract;
mod crashes;
mod dead_letters;
mod dead_letters_api;
mod durability;
mod feed;
mod gate;
mod hostile;
mod map_epochs;
mod monitoring;
mod outages;
mod plans;
mod progress;
mod provisioning;
mod relay;
mod secured;
mod stats;
mod supervision;
mod support;
mod tables;
mod traces;
mod trail;
mod values;
mod verify;
