//! What must not compile: every way around sealing. And the one road, which must.

#[test]
fn no_way_around_sealing_compiles() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile_fail/the_road_compiles.rs");
    cases.compile_fail("tests/compile_fail/attempt_*.rs");
}
