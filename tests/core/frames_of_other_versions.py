"""One table, pickled by other versions of pandas and numpy than are installed here; compressed, base64."""

FRAMES = {
    "pandas 1.0, numpy 1.18": (
        "eNqVVF9rE0EQz/1JjNUiBYvtS8EHNXk5GvBBQazYIujhCX0vx16yzQbvNvF2TxtsUB9SEfat42fwg/hF/Bi+6cxuAkmMgpeQnZvd"
        "32/mNzuTj+HXTlizj9kaMdljKuoOSx6dlqzgYK4eMc2eWfsS2p9gAi1TT3voBLO3eH4gNS8ly1VUMMn6vFRgrj/Nh93XL927w7dO"
        "kGBnGdjjZ1xFGVMYbyOV/F36nHwIENdMfW5T5NAF3pZVMRo7eFHlesDKko0xXlry7lAqXVZdjRBTtwfBXMFw9sglxLUpHHoZfIZj"
        "aMVeXJ+C2Db1nh6PSKLxXz3AM7Hn9gPjnUOSJC9+4WN/4gMN2RdSESj+BqlzLlNrhZKfaYypKC96paJxPC3aSXWBdGLT7K5TXjLZ"
        "J+nHtC7IRRyyaVZqzMiESg9HgBmhwdHwLCfHTMRNcYtkid25KC8OLkDsGf90RcyjFTE1EnO44xrgx4Fbf87W8AlQ9n+w+3P2wRK7"
        "eLyOe993ZDVvtgazde5fff4V8zYVHr8UNQ5IexzQx1o+ebnxsEHwfo3//Zutvq3QprhBBd1aU6qpoxUttnRVfwX4M0BL3BX3+P9i"
        "7oj2IoZPwDT2o879qOManGFDgNgwjYxGRwFiyN94y/KKdh6aZtEvU9zE+Wpm1QC7XyrqunzQpQbGcoTuSipK5r04EufiA5VryZtY"
        "by1uxqH18kphWiZMcQ5w6mnO5v8AacE1s4N3gnGY1jjaE6iy6DfJZYMw"
    ),
    "pandas 1.0, numpy 1.18, protocol 2": (
        "eNp1VGd31EYU1RYXRAsBQm+BJEPJYlMNmJgQQlNYwqQJyEaMtGPPwq52rzQyNqDQsvbhX+Rb/kK+88OSNyOZA4FI52jKe/fdqzvl"
        "WTUaiLgt0kbUT2RjNhE96V4SWly2PTgHn6OSo8r8EcdxgjZFUHsH0om1TGLRTRs9EYs5maTuxW4/enCjGLmoU4kR1sIo+w+uLRdk"
        "2ghFKt0glg+Da2bGxdj/p5UZ4zlWMb9OgqweN4qz3mCxyO9lXd0RSSIW3SCRUT9OdZJF2sXqIsul0jaKNZ4zxNooiPptGaWujE3H"
        "xTq/QoVDrPdHqe0K3Ykn8dESNnB8vIyNHJuYV/FGhthcFmzrxQHhPvGrlH9zCls8x6ssYyvHNubVbLUn2N5sNq//Q4/9eDMaO8JX"
        "Lexkfo3iqQR2+WOGT8aBGe22vxfLBY091vrU/B32FtO0NNgnNT4N1b5mtoT9HAfUh31LRDwnXW6+pXuf5ficEa4oq0Wi8YXn2MKp"
        "7g9gRBcDOcBBr0L1D3Ecli0cYWq1srZ9qciLBsdR40XFqy1hQhUGzE5hsjDgGMfxFQOmceJdAxyNk+Ertc7f7qw8r/+cKTt/l536"
        "BZxSZP1pjimNM+EK+1nDfo5j2rBXDfv5kr0zha8K9hmOC8Su3uf92vJOUHa1ZK6Uba1sq86HH1w0ar7huKTx7Rs1l42aKxxX36i5"
        "prbR2l6nPe8xo8arkXnfkRrzUvcGozyal9YbgaZab9W//gs3aVW/DynnFlNjijY6Z8pdYfrBMP3I8ZN1fYifLc8vaq/Q8MutcJvj"
        "ToG8+xbyV4NscfxmNQ4RWOQ9pnarPcQoSnDIERXg9ltgacCzHHMlWFlwh6ldymzC+yX4AUdX5ujZczPRmDzRmESco1+cVEGbEQM1"
        "aqOhuSBSoIWE5UiZnZwX3YxytDrqj9OwN5cElJYii4IgzDp0rOMgcNNuJ6LTNk9W1s06P+RYyHIsMqXVtMrUvLHbBB5xPKbAExO4"
        "agOON+7Vl5Fz/J7JLNV4GlppAR1gPPNXlfeJvQPx3I6DntTCXjIvWnhpT4zQOknxR45hFjb+BVoklTo="
    ),
    "pandas 1.3, numpy 1.21": (
        "eNqdk81u1DAQgPO30AVUCSRoKxDiwGHLYcWRA1IRRUhgsUg9UyIn8W4iHCc4jtqVqASH/km+dXgGHoQX4Rk4cYMZZyO2pSecH4+d"
        "8cw3k5nP0defoeeGvVlzlfFmnFZajKealwLs8AU3/KWTz2DzCxzAyEZxOdNg7y+rF8oIrbhsxiVXfCZ0A/bGc1mlH950azxuh9NW"
        "paaqJH68WnNtCi5p/97llhI6jqpDJfZit0DlQ9iBUb66eQA2UllRAguaiYHE3lZtWc87G2Ur0bbWfI4UsRZppRqj29SQt4FTRAL0"
        "6VTOgHmHsO0ncEzGmc8CFh5BvmYHmZnXFLkNiidwetJ9D63/FCaTyevfONyLeUhwuv046DLp+Yt5kVmv3784gMBXkrZAXIWRDhpZ"
        "pOQPGULmk7sjfPLr+erfuPNbi5DzO/kGked3e27fcT+wwXSJNn94Get6R/Bjq5t/LeboGTHlj9B99B8AQQ/w9ly6Pl1I1xYh7MII"
        "b+YRtSAppMtJAe0K63Ow+Fds8P0biA7LYyss6rGOAZXt+vnqycS+wNrhDVbvtZhK5xXtYVLzd3bQy66OM6xt+DeIAS4Y4dmwER+x"
        "UKRQsZMiJfYN/SbyRUvqC0cmJ61L1Hu7cRmO5mpGPDs0LzHgObRmsBWwBm3UmKoGTBgKAgXf2RT0wqbDUsReIOa+N+NSGO6C2EUo"
        "bgx2HfbFlXgq+cyJa1zKaq+Js7bGyuJGxJInAvvvpGmT8R/piHkE"
    ),
    "pandas 1.5, numpy 1.26": (
        "eNptk81u1DAQgPO3tNCKn0qU9tLzclmBEFIlkIooQoLAIvVMZTlZZxM1cYLtqK1EJTjQH8k3hr4Cz8CZF+ExuMGMN6vurupEnrHj"
        "GX8zmfnS+/Er9Nyw9xouR1wP0lqJQaZ4JcDefMUNf+307/DwK5xA30asGiuwW7PHC2mEkrzUg4pLPhZKg119WdbpwfvJGs3temfB"
        "yiLRVyZg77BWNkV6UAqWkA0dXpNt1RxPvKMqVJGCXWGZqqukzTLnsX+54c2OPzsT+beT0QuwPecH5cgcNxSFDbJtuDg/gz3ox6H1"
        "n8NwOHz7D4ebYs9AEvtxeArW3wWDx+xy0halKSSi9nRZpOQmDuMo9slLHNCcr+S3+5ePOpKgk34nw4X9xQH5mg2KGa58/RqqgKjy"
        "TWLKt4hxHsDen8lZ1SIxV4pj7KtMibSW2qg2Ncie37VL+CfcR4zE+wa7fgKTm/3uFuT5MJenzwt52kGii33o4xt7BCNIC+lxWkC7"
        "wvoc85hg1n//BIEmCO7Fy3F0BX4GeNxuzJfTSBwJPUi4xiK8xaQ4ZG9oj+Df2d5Ud+U4whKF/HH+hALJn07D6OHiGQHaUItPYJdK"
        "IZnTIimODP1KuouWVN6O7eOwPaVUDu3mdTiKyzHx7JGcYUA79Ga4MphMG2lTN1gfpAhUfOdT0IS9g1WIbUXM0xZjlTDcBbGPUNwY"
        "bJ4TsDdYVvKxUx/wsqwPNRu1DVYfN4KVPBHYOee6TQb/AY9FX4k="
    ),
    "pandas 2.2, numpy 2.1": (
        "eNptk19r1EAQwJNLzlZb/Atn+9Ln8yUoIggKFSuCRk/os2XZ5DaX0GQTdze0BQv6YP/Avjn2K/ghfPSL+DF805m9HL07ugk7s5ud"
        "2d9MZr70f/wKPDfsnYbLMddRWisRZYpXAuz1V9zw107/Dg++wjEMbciqiQK7NX+8kEYoyUsdVVzyiVAa7PrLsk7330/XaG4HnQUr"
        "i0RfmoC9xVrZFOl+KVhCNnT4nmyr5ihizj3qQhUp2DWWqbpK2ixzLocXG978+LM9lX87Gb4A23eOUI7NUUNh2F72FM7PTmEXhnFg"
        "/ecwGo3e/sPhptgzkMR+HJyA9XfA4DG7mrRFaQqJrH1dFim5iYM4jH3yEvdoztfym8OLhx1Jr5N+J4Ol/eUB+V3bK+a48sEVVD2i"
        "yjeJKd8ixkUAO5hPWtUiMleKY/DrTIm0ltqoNjUIn9+2K/gv3EcMxfsGO34C06v97hoE+rCQqM9LidpGpPM9GOIbe0QjSAvocVqP"
        "doX1OSYywbT//gkCTZDci1fj8JL8FPC43VgsqLE4FDpKuMYyvMGkOGBvaI/g39n+THcFOcYihfxR/pgCyZ/Mwujj4hkB2kCLT2BX"
        "SiGZ00IpDg39S7qLllTgju3jqD2hXI7s5lU4issJ8eySnGNAO/RmuDKYTBtqUzdYIKQIVHznU9CE3YNliI1FzLMmY5Uw3AWxh1Dc"
        "GGyfY7DXWFbyiVPv87KsDzQbtw2WHzeClTwR2Dtnuk2i/1j2YEs="
    ),
    "pandas 2.2, numpy 2.1, protocol 2": (
        "eNp1lGlT00AYx9ODK94nCt5n8KjggagoiIhKpOiKGo+6btJtkyFN+0+2A8zYGX1BC9/Cd34F3/PBdDdNZVDczGSf3TzH73l2n3xN"
        "OzUWFFmUc6ohz5VCVuH6NBNsJpagDX1DqoG0YWU1TaOVcojMFgsvEDwMmB/lKixgZR5G+pRfdRbn2isd2Y469T072tTXaT2oec6i"
        "z6mtDHR0OUG9UlvJ0dhxpe4Lj4UhW9FpyJ1qEImw7ggd3W01XTqNv6LH1FbR60izIncinQdK0NFnpSSyDd3qlrPPhBeMYEcTOwl2"
        "tbCbYI9hpuSTaWJv4rIoVmrScp+VlhalMexfX2vhAMFBw8zE3sZxKJ/Pz/6SI36ZmsBhe93tswa0ztj4PpEIPxMhO4l+V0Y+QnBU"
        "YMB2KLXrnkwvoFSPfM+RMQfNjJk1Uy0cIzhupls4QXDS7XK73Ti9U65kPk1wRjGnFfNZt43pjeGcwjxPcEFiuv8CXowBh6VuOkFM"
        "JXMmmdPa9gOGwh4iuCRw2XYHVbUU4xWCq4oxR3Btk3FYMY4QXP/DeCNhnB/DTcV4i2C0U8ovuL2VdEJgzF4v4I5RwF3D1FQwXsA9"
        "aaAeKY4b0q3c57EDhvvJCT+Ig2z8wAQXmFScmtlrZlt4SDClOB8RTLfwuIAZ46/LW+TLPMrZLOI6DfgSfaZ2dDz5v1qi8bSBZ+2m"
        "KMpuwWynCKYqwnOCOVWErlXk3VGZ07xhqVpHHHhh9ajryAOqVi9jFwFfFiBWl1JREfGqvS1bEAsyp9e2u5CvN/GG4K27PVvIgjLX"
        "iXonhFYD7wxp13YrWCjw3tRix5Go1vBBHkR7wWv4aKak/wLBJ94EJfjc7nfZD2BWX5Jl/HeAHa9phQsWp+4UUIxjMCHCCLyBUtxx"
        "tOSzcoRyA67Vrz77fnUposV6Td54Jjj1mc39CN5aVLdzvwHuUV+k"
    ),
    "pandas 3.0, numpy 2.3": (
        "eNqFVN1q1EAU3mySalu1SKEWFL0SVpDFghdeCLU/KG101Xpdhkl2sglNJjGZ0F2wqBfWFuaux76CD+KL+Are9U7PmWTt7iI4CTNn"
        "Zs7Pd37mfHK/DZ2WGXou57LPS9Dz21zx5wVPBZzBg89wBB3tsHRQgL5b83SDrBDdWCpRSJ6U3ZRLPhAFyl7bTLLg4FW9R/GOXmlE"
        "WBL75aUM6CVWyTwODhLBfBJCbr0iqzQfdZnRn1aJinlR8BHqZYUIMlmqogoUcbqGE/QVVG5YzsBrfYEty4evsAcdz8LPPoZoSbt9"
        "NcrJF91+/QROT+p7W1sfoNfr7f7GYSZvXYF/ug8d/L0WiQuibPoM1aZTIZBLX/WrGNFJ9MMtkzgQxj4ZJe1em+ZoUS9P+oO0KOIA"
        "9CILiyz1qzCsY3T+qE5Bq92sVrPaM+ezA6JV3Y6nfHo641ML0SJwjIS2tkARrPvk2jTQ6GHnfHVK9c/1er1oVueZMRZOGIvW/mGq"
        "DvrjxpDtObMRmSoHkzqM4R3G8tHwsiB62xt0s8mDA9GnzF1vxMYCi+9UEcvBRpP63Xtzv5yeMdEa322Psz6Xj1SUSXjx8aL25Zj4"
        "bkQ3qWCi5XG52Li5TenXFsdg+VguP74DZfsYfPTF8dxJXxQQ6+r0g+iLoSi7Pi8F6AUmxSHboTNEgbjcMW0eVB8fGUQ70csJ7G+i"
        "t/8B6f4FaZfiPZZ/IiQzlCPFUFE1EhTa0vsdox/2KqMvRBgLe1wOxAQWvEUxxQuFJaydUmU5YCkhIZCwjKSgCbsAxhQbBGEPTYPQ"
        "8ywVihtn9tE6VwrbwBEGnYUJHxjyFk+S7LBk/SrHl8KVYAn3BbaAk7Lyu38AKyalJA=="
    ),
    "pandas 3.0, numpy 2.3, pyarrow": (
        "eNptVM1u1DAQTnaTlnZLi1Sp7QlxQQoCRSBx4IBUSitQCU1FOfRUWU7WWUfNH46j7UpUwKF/km81+wo8CC/CY/QGYydbdqM6K8/Y"
        "O7/fzPi7/fOpbegl5gqc9XEpxcIO5vgdwymR1/LJD3kqHWGhdMCkeFjLuGHOiBtnnLAMJ6Wb4gwPCAPdpbdJHh7v1WdQd8Rao4KS"
        "OCj/60ixgqqsiMPjhKBAKYG0WMuqtBi5SNtPq4THmDE8AruIkTDPSs6qkCtJW0tKMQ/Gtci19IwzuW0G8kIeSMcz4eueS7oi7D4f"
        "FSoX0dl/Ja8u6/+7wvwqfd//8BeW3rxNLoOrI+nAzzOUOlFcV32a66hbQkBK3AuqGKLLIA+7TOKQaP/KqbLuddROe2J1Oh/gCYtD"
        "KXooYnkaVFFUYzR+XpfA6DTUbGi3dd9ekm6ITjyT0+tWTgZEC4EDEsLcllyF9VilNhsofeaMN2ZM/9ms6U1DrTfaWTTljL64w1UN"
        "+svGUdezWojcb9pBFw3Qe7DFWD78zFmcDbaaQjY9t4AKjJr694oRVoIudJEUy9ANJQdM0aT2Dt0Ty6rMKMoZwkkMjQwFX0owGxBU"
        "avPyTAXShTIZUE0fNBaKEbotw/hRC12zhb41QV3ZoYfjyRkHv3/pO2gSn2tOzKG66aghenVyO5MmnG9Ske+/3dQGzkGjCgAuy7On"
        "4eIS4hQbszPXJyekdANcEikWUUaGaFfdgWXwZU94PbN9mGNJd2s46Ue679BPd0Fi30JyeNuKRqsFFxu63NDVhq63QJmcS/IlIRkC"
        "kpETXqrgM/WizOJEA9qnpAWEsLSkX6kjLSCtxQOcDchUbvTCh7njmHGYOmFBLxRQWcUQYEytSdQGDxfgDm+awiLSbxr0VUo41uAc"
        "wfhizuHlOlU1ixI80Ow6TpJ8WKJ+VcBwY05QggMCr9ZlWQXuP6kWx8U="
    ),
    "pandas 3.0, numpy 2.3, pyarrow, protocol 4": (
        "eNqFVFFP1EAQ7t214AEeGhLAF2NiTM6XBt58MEE8osFKifhgfCCb7d3ebaW3V7db4RKJ+gBCsi+G9Tf4Q/wj/gzedGbbIpwkttfO"
        "dG9m9ptvZvaz+/2O59hLT6VU9GhmdHODKvpM0iEzZ+bhF3No2tolw4E0+m5h43dHkvmxUEwKmmT+kAo6YBJ8554mo+7eVvEN7m29"
        "WLqQJI6yvz5Gz5NcpHF3L2EkQiew1osiH6Zjn9j4wzxRMZWSjiEukaw7EpmSeVehpWctjZ6G4NbkzATOkenUIvPV7Jh2UIO7cWz4"
        "vPZ6apxiLrq+/cicnhT/N3TtownD8MVvuOwrWFMmOt01bfgFDroz1Bp4W62Oq4yBlb4R5TGgE5CHlyVxl9n9cVOMHtTxzWd5i99G"
        "VHyhwlS3mJZ1Pb6C5PEEEgeRdFbqRWmcWikbpazWJy8DbvwBIv8fjlqFo38JB1+9DsVyEfvXWiHPS+k+KXdrBO7V3fTNsuS2MMDQ"
        "rXUpR/uvlYzFYL0sVtlXTZJSUtZ4Nh1TNPShU4xuQcUzBX1Aqvq2+ZZuYSlJfyQJTWJoVijqXELlgJHMhjdHCKQBpXCgYiF4NNMx"
        "ifJ+37Yjv6+b0VixKmTnnjNBcUWtW1GKAfHhb/jbjkujnz8ulqApQmU1PUWKJuOOni0S3aiabrpMyzz/dF7EPAaPHKlzA+8ydcoA"
        "Zr18dcZ67IBlfkQzZvQMEWyfbOIaJuNor9LtjPZgbg3fLKjlL/l2m7+6jh7vgh7MacWZ6K6ZUrZKuVDKpWspWcrY+4QJAkKwA5Uh"
        "bIFnx78scc7f8b0JGrRrrcMcP/kHSGpmh4oBu5QZ/xbClCkqFcyYdqErUqgxKgyUmvVk+IJjCliHEwyZ6NsTDDpsyBS11OzCsFKl"
        "4Jw6xIr1Ezqw6hJNktF+Rnp5CqNMFSMJjRicUSdZHvl/AFXhztk="
    ),
}
