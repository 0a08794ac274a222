//! E0603: nobody else can put a type into the closed set.
use falaj_agent::egress::Message;
use falaj_core::egress::Sent;

struct Record(Vec<u8>);

impl falaj_agent::egress::sealed::Sealed for Record {}
impl Message for Record {
    fn described(&self) -> Sent {
        panic!("{:?}", self.0)
    }
}

fn main() {}
