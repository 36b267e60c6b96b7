// Two videos with one play button and one time line. Listens on the document, since the page's parts come and go.
(() => {
  const pairOf = (node) => node.closest && node.closest(".pab-pair");
  const partsOf = (pair) => {
    const [first, second] = pair.querySelectorAll("video");
    return { first, second, button: pair.querySelector(".pab-play"), line: pair.querySelector(".pab-time"),
             output: pair.querySelector("output"), frame: 1 / Number(pair.dataset.fps || 16) };
  };
  const show = (parts) => {
    const { first, line, output } = parts;
    const length = first.duration || 0;
    line.value = length ? Math.round((1000 * first.currentTime) / length) : 0;
    line.setAttribute("aria-valuetext", first.currentTime.toFixed(1) + " s");
    output.textContent = first.currentTime.toFixed(1) + " s";
  };
  const follow = (pair) => {
    const parts = partsOf(pair);
    const { first, second, frame } = parts;
    if (!pair.isConnected || pair.dataset.playing !== "1") return;
    if (first.ended) { first.currentTime = 0; second.currentTime = 0; first.play(); second.play(); }
    // The second is set right when it is half a frame away from the first.
    else if (Math.abs(second.currentTime - first.currentTime) > frame / 2 && !second.seeking) {
      second.currentTime = first.currentTime;
      if (second.paused) second.play();
    }
    show(parts);
    requestAnimationFrame(() => follow(pair));
  };
  const stop = (pair) => {
    const { first, second, button } = partsOf(pair);
    pair.dataset.playing = "0";
    first.pause(); second.pause();
    second.currentTime = first.currentTime;
    button.textContent = button.dataset.play;
  };
  document.addEventListener("click", (event) => {
    if (!event.target.classList || !event.target.classList.contains("pab-play")) return;
    const pair = pairOf(event.target);
    if (pair.dataset.playing === "1") { stop(pair); return; }
    const { first, second, button } = partsOf(pair);
    pair.dataset.playing = "1";
    button.textContent = button.dataset.pause;
    second.currentTime = first.currentTime;
    Promise.all([first.play(), second.play()]).catch(() => stop(pair));
    requestAnimationFrame(() => follow(pair));
  });
  document.addEventListener("input", (event) => {
    if (!event.target.classList || !event.target.classList.contains("pab-time")) return;
    const pair = pairOf(event.target);
    stop(pair);
    const parts = partsOf(pair);
    const time = ((parts.first.duration || 0) * event.target.value) / 1000;
    parts.first.currentTime = time; parts.second.currentTime = time;
    parts.output.textContent = time.toFixed(1) + " s";
  });
})();
