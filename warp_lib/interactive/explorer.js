// Keeps the explorer's choices in the page's address, so that a view can be shared and survives a reload. Made for explorer.py.
function render({ model, el }) {
  el.hidden = true;
  if (!("voila" in document.body.dataset)) return; // a notebook's address is JupyterLab's
  const given = location.search;
  if (given.length > 1) model.send({ asked: given.slice(1) });
  const show = () => {
    const query = model.get("query");
    history.replaceState(history.state, "", location.pathname + (query && `?${query}`) + location.hash);
  };
  model.on("change:query", show);
  if (model.get("query")) show();
}
export default { render };
