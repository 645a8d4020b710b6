// The videos of two models play together: what is done to one is done to the other.
{
  // where follow moved a video; the event of that move must not make it the leader
  const moved = new WeakMap();
  const follow = (event) => {
    const leader = event.target;
    const seeks = event.type === "seeking";
    if (leader.dataset?.ln !== "pair" || (seeks && moved.get(leader) === leader.currentTime)) return;
    for (const other of document.querySelectorAll("video[data-ln=pair]")) {
      if (other === leader) continue;
      // while playing, the two may be a little apart; a video that seeks is about to lead by its own event
      const apart = Math.abs(other.currentTime - leader.currentTime);
      if (seeks ? apart > 0.001 : apart > 0.1 && !other.seeking) {
        other.currentTime = leader.currentTime;
        moved.set(other, other.currentTime);
      }
      if (seeks || leader.ended || leader.paused === other.paused) continue;
      // the state of now, not that of the event: after a quick play and pause the two would start each other forever
      if (leader.paused) other.pause();
      else other.play().catch(() => {}); // not loaded yet: it plays by itself
    }
  };
  // media events do not bubble
  for (const name of ["play", "pause", "seeking"]) document.addEventListener(name, follow, true);
}
