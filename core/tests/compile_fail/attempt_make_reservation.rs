//! E0451: nothing but the ledger's constructor makes a reservation.
use falaj_core::dp::Reservation;

fn forge() -> Reservation {
    Reservation { id: 1 }
}

fn main() {
    let _ = forge;
}
