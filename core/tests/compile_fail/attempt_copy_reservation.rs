//! E0507: a reservation cannot be copied out of where it lies.
use falaj_core::dp::Reservation;

fn copy(paid: &Reservation) -> Reservation {
    *paid
}

fn main() {
    let _ = copy;
}
