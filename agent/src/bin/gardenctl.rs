//! `gardenctl`: see [`garden_agent::ctl`].

fn main() -> std::process::ExitCode {
    garden_agent::ctl::main()
}
