// The videos of two models play together: what is done to one is done to the other.
{
  // where follow moved a video: the event of that move comes later, and is no wish of the user
  const moved = new WeakMap();
  const follow = (event) => {
    const leader = event.target;
    const seeks = event.type === "seeking";
    if (leader.dataset?.ln !== "pair" || (seeks && moved.get(leader) === leader.currentTime)) return;
    for (const other of document.querySelectorAll("video[data-ln=pair]")) {
      if (other === leader) continue;
      // playing videos may be a little apart; one that is being moved leads itself, by its own event
      const apart = Math.abs(other.currentTime - leader.currentTime);
      if (seeks ? apart > 0.001 : apart > 0.1 && !other.seeking) {
        other.currentTime = leader.currentTime;
        moved.set(other, other.currentTime);
      }
      if (event.type === "pause" && !leader.ended) other.pause();
      if (event.type === "play" && other.paused) other.play().catch(() => {}); // not loaded yet: it plays by itself
    }
  };
  // media events do not bubble
  for (const name of ["play", "pause", "seeking"]) document.addEventListener(name, follow, true);
}
