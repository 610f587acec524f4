mod birth;
mod failsafe;
mod following;
mod members;
mod pause;
mod scene;
mod slots;
