// The videos of two models play together: what is done to one is done to the other.
{
  const follow = (event) => {
    const leader = event.target;
    if (leader.dataset?.ln !== "pair") return;
    for (const other of document.querySelectorAll("video[data-ln=pair]")) {
      if (other === leader) continue;
      if (Math.abs(other.currentTime - leader.currentTime) > 0.1) other.currentTime = leader.currentTime;
      if (event.type === "pause" && !leader.ended) other.pause();
      if (event.type === "play" && other.paused) other.play().catch(() => {}); // not loaded yet: it plays by itself
    }
  };
  // media events do not bubble
  for (const name of ["play", "pause", "seeking"]) document.addEventListener(name, follow, true);
}
